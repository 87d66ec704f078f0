"""Measure the shards of this rank into packed rows, by the extension or with torch's operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradkern.distributed.packed import (
    KEYS,
    SUMS,
    Packed,
    as_measured,
    by_group,
    encode_reference,
    join,
    merge,
    smallest_dominates,
)
from gradkern.kernels.backend import C
from gradkern.kernels.kinds import naming, place
from gradkern.kernels.measured import Measured
from gradkern.kernels.shared_memory import same_memory
from gradkern.kernels.torch_ops import named_magnitudes


def measure_here(
    grads: Sequence[Tensor | None],
    groups: Sequence[Sequence[int]],
    norm_type: float,
    count_zeros: bool,
    inv_scale: float | Tensor,
    names: Sequence[str],
    home: torch.device,
) -> Measured:
    """The statistics of plain gradients on one rank, with named groups. One read."""
    local = pack(
        grads,
        norm_type,
        home,
        per_tensor=True,
        count_zeros=count_zeros,
        operation="GradClipper.clip_",
        names=names,
    )
    wide = any(g is not None and g.dtype in (torch.float64, torch.complex128) for g in grads)
    report = torch.float64 if wide else torch.float32
    totals = join([by_group(local, without_repeats(grads, groups), norm_type), local.total])
    return as_measured(local.upto(-1), totals, grads, report, norm_type, count_zeros, inv_scale)


def without_repeats(shards: Sequence[Tensor | None], groups: Sequence[Sequence[int]]) -> list[list[int]]:
    """The positions of each group, without those of shards that are listed before."""
    if not groups or _starts_differ(shards):
        return [list(members) for members in groups]
    first: dict[object, int] = {}
    for position, shard in enumerate(shards):
        if shard is not None:
            first.setdefault(same_memory(shard), position)
    counted = set(first.values())
    return [[i for i in members if i in counted] for members in groups]


def _starts_differ(shards: Sequence[Tensor | None]) -> bool:
    """Whether all start at different addresses, so that none is listed twice. Faster than `same_memory`."""
    starts = [
        s.data_ptr() for s in shards if s is not None and type(s) is Tensor and s.layout is torch.strided
    ]
    return len(set(starts)) == sum(s is not None for s in shards)


def pack(
    shards: Sequence[Tensor | None],
    norm_type: float,
    device: torch.device,
    *,
    per_tensor: bool = False,
    count_zeros: bool = False,
    operation: str = "clip_grad_norm_",
    names: Sequence[str] | None = None,
) -> Packed:
    """Measure local shards. One read.

    Args:
        shards: None where this rank counts nothing.
        device: the device of the result, on which the collective runs.
        per_tensor: whether to return the rows of the shards too.
        operation, names: for messages.

    Returns:
        One row per position if `per_tensor`, then the row of the whole list. A shard listed twice has two
        equal rows and counts once in the whole.
    """
    if len({s.device for s in shards if s is not None}) <= 1:
        found = C.partials(shards, norm_type, count_zeros, per_tensor, operation, names)
        if found is not None:
            return Packed(*found).to(device)
    parts = []
    for kind in sorted({s.device for s in shards if s is not None} or {torch.device("cpu")}, key=str):
        here = [s if s is not None and s.device == kind else None for s in shards]
        compiled = kind.type in ("cpu", "cuda")
        found = C.partials(here, norm_type, count_zeros, per_tensor, operation, names) if compiled else None
        if found is None:
            part = _pack_with_torch(here, norm_type, kind, per_tensor, operation, names)
        else:
            part = Packed(*found)
        parts.append(part.to(device))
    return merge(parts, norm_type)


def _pack_with_torch(
    shards: Sequence[Tensor | None],
    norm_type: float,
    device: torch.device,
    per_tensor: bool,
    operation: str = "clip_grad_norm_",
    names: Sequence[str] | None = None,
) -> Packed:
    """`pack` with torch's operations, for devices without a kernel. No synchronisation."""
    nothing = Packed(
        torch.zeros(1, SUMS, dtype=torch.float64, device=device),
        torch.full((1, KEYS), -1, dtype=torch.int64, device=device),
    )
    what = "parameters" if names is None else "params"
    rows = [
        nothing if s is None or not s.numel() else _pack_one(place(operation, what, i, names), s, norm_type)
        for i, s in enumerate(shards)
    ]
    seen: set[object] = set()
    unique = []
    for shard, row in zip(shards, rows):
        if shard is None or row is nothing:
            continue
        same = same_memory(shard)
        if same not in seen:
            seen.add(same)
            unique.append(row)
    whole = merge(unique or [nothing], norm_type)
    listed = [*rows, whole] if per_tensor else [whole]
    return Packed(torch.cat([r.sums for r in listed]), torch.cat([r.keys for r in listed]))


def _pack_one(where: str, shard: Tensor, norm_type: float) -> Packed:
    values = named_magnitudes(where, shard)
    with naming(where, shard):
        return _row_of(values.flatten(), norm_type)


def _row_of(x: Tensor, norm_type: float) -> Packed:
    """The row of a vector of non-negative numbers."""
    largest = x.amax()
    up, down = (largest > 0) & (largest < 2.0**-400), ~(largest <= 2.0**480)
    # `ones_like` makes this float64; torch.where of two Python numbers would be float32.
    bin_scale = torch.where(up, 2.0**600, torch.where(down, 2.0**-600, torch.ones_like(largest)))
    scaled = x * bin_scale
    square = scaled.dot(scaled)
    bins = [torch.where(up, square, 0.0), torch.where(up | down, 0.0, square), torch.where(down, square, 0.0)]
    reference = x.amin() if smallest_dominates(norm_type) else largest
    if norm_type == 1.0:
        power = x.sum()
    elif norm_type == 0.0:
        power = (x != 0).sum().double()
    else:
        power = torch.where(x == reference, 1.0, (x / reference) ** norm_type).sum()
    zero = torch.zeros_like(largest)
    counts = [(~x.isfinite()).sum().double(), (x == 0).sum().double(), torch.full_like(largest, x.numel())]
    sums = torch.stack([*bins, zero, zero, zero, power, zero, *counts])
    present = torch.ones_like(up)
    keys = torch.stack([largest.view(torch.int64), encode_reference(reference, norm_type, present)])
    return Packed(sums[None], keys[None])
