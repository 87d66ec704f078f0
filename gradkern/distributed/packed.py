"""The contribution of one rank to a norm: two small tensors that all-reduces combine.

`sums` (float64) is reduced by SUM and `keys` (int64) by MAX. Their columns are documented in
csrc/core/packed.h:

- Squares are kept in three bins, each scaled by a power of two (ScaledSum in csrc/core/norm.h), so that a
  float64 sum over ranks cannot overflow or underflow. Each bin has a rounding compensation.
- Magnitudes are kept as the bits of a float64. As integers these have the order of the values, with NaN
  above inf. The MAX of floating-point numbers drops NaN in some backends.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradkern.kernels.backend import C
from gradkern.kernels.kinds import naming, place
from gradkern.kernels.measured import Measured, decision_norm
from gradkern.kernels.shared_memory import same_memory
from gradkern.kernels.torch_ops import named_magnitudes

SQ_HI, SQ_LO = slice(0, 3), slice(3, 6)
POWER_HI, POWER_LO, NONFINITE, ZEROS, NUMEL, SUMS = 6, 7, 8, 9, 10, 11
MAX_BITS, REF_KEY, KEYS = 0, 1, 2

_INF_BITS = 0x7FF0000000000000
_NAN_KEY = 2**63 - 1
_BIN_ROOTS = (2.0**-600, 1.0, 2.0**600)


@functools.lru_cache(maxsize=256)
def positions_on(positions: tuple[int, ...], device: torch.device) -> slice | Tensor:
    """An index of rows on a device. Kept: a copy from the host waits for it and cannot be captured."""
    first = positions[0] if positions else 0
    if positions == tuple(range(first, first + len(positions))):
        return slice(first, first + len(positions))
    return torch.tensor(positions, dtype=torch.int64, device="cpu").to(device)


class Packed(NamedTuple):
    """`sums` float64 [R, SUMS] and `keys` int64 [R, KEYS]. The last row is of the whole list."""

    sums: Tensor
    keys: Tensor

    def to(self, device: torch.device) -> Packed:
        return Packed(self.sums.to(device), self.keys.to(device))

    def rows(self, positions: Sequence[int]) -> Packed:
        index = positions_on(tuple(positions), self.sums.device)
        return Packed(self.sums[index], self.keys[index])

    def upto(self, end: int) -> Packed:
        return Packed(self.sums[:end], self.keys[:end])

    @property
    def total(self) -> Packed:
        return Packed(self.sums[-1:], self.keys[-1:])


def is_power(norm_type: float) -> bool:
    """Whether the sum of this order is relative to a reference magnitude."""
    return norm_type not in (2.0, 1.0, 0.0) and not math.isinf(norm_type)


def _smallest_dominates(norm_type: float) -> bool:
    return norm_type < 0


def encode_reference(reference: Tensor, norm_type: float, present: Tensor) -> Tensor:
    """Keys whose MAX is that of the dominant reference magnitude (float64, >= 0 or NaN)."""
    bits = reference.contiguous().view(torch.int64)
    ordered = _INF_BITS - bits if _smallest_dominates(norm_type) else bits
    ordered = torch.where(reference.isnan(), _NAN_KEY, ordered)
    return torch.where(present, ordered, -1)


def decode_reference(keys: Tensor, norm_type: float) -> Tensor:
    """The reference magnitudes of keys; 0 where there is none."""
    bits = keys.contiguous()
    if _smallest_dominates(norm_type):
        bits = torch.where(keys > _INF_BITS, keys, _INF_BITS - keys)
        bits = torch.where(keys < 0, 0, bits)
    return bits.clamp(min=0).view(torch.float64)


def decode_max(packed: Packed) -> Tensor:
    """The largest magnitude of each row, float64; NaN if an element is NaN."""
    return packed.keys[:, MAX_BITS].clamp(min=0).view(torch.float64)


def _compensated(hi: Tensor, lo: Tensor) -> Tensor:
    return torch.where(hi.isfinite(), hi + lo, hi)


def finish_l2(packed: Packed) -> Tensor:
    """The L2 norm of each row, float64 [R]."""
    roots = _compensated(packed.sums[:, SQ_HI], packed.sums[:, SQ_LO]).sqrt_()
    small, normal, large = (root * scale for root, scale in zip(roots.unbind(dim=1), _BIN_ROOTS))
    # NaN and inf are in the last bin, and hypot(NaN, x) is NaN for every finite x.
    return torch.hypot(torch.hypot(small, normal), large)


def finish(packed: Packed, norm_type: float) -> Tensor:
    """The norm of order `norm_type` of each row, float64 [R]; 0 for an empty row."""
    if norm_type == 2.0:
        return finish_l2(packed)
    if norm_type == math.inf:
        return decode_max(packed)
    if norm_type == -math.inf:
        return decode_reference(packed.keys[:, REF_KEY], norm_type)
    power = _compensated(packed.sums[:, POWER_HI], packed.sums[:, POWER_LO])
    if not is_power(norm_type):
        return power
    root = decode_reference(packed.keys[:, REF_KEY], norm_type) * power ** (1.0 / norm_type)
    return torch.where(power == 0, 0.0, root)


def align(packed: Packed, keys: Tensor, norm_type: float) -> Tensor:
    """`packed.sums` with power sums relative to the references in `keys` (PowerSum in csrc/core/norm.h)."""
    if not is_power(norm_type):
        return packed.sums
    own = decode_reference(packed.keys[:, REF_KEY], norm_type)
    common = decode_reference(keys[:, REF_KEY], norm_type)
    factor = torch.where(own == common, 1.0, (own / common) ** norm_type)
    present = packed.sums[:, POWER_HI] != 0
    sums = packed.sums.clone()
    for column in (POWER_HI, POWER_LO):
        sums[:, column] = torch.where(present, sums[:, column] * factor, 0.0)
    return sums


def merge(parts: Sequence[Packed], norm_type: float) -> Packed:
    """Combine parts that share no elements, row by row."""
    if len(parts) == 1:
        return parts[0]
    keys = torch.stack([part.keys for part in parts]).amax(dim=0)
    sums = torch.stack([align(part, keys, norm_type) for part in parts]).sum(dim=0)
    return Packed(sums, keys)


def by_group(packed: Packed, groups: Sequence[Sequence[int]], norm_type: float) -> Packed:
    """One row per group, combined from the rows of its members."""
    sums = [packed.sums.new_zeros(0, SUMS)]
    keys = [packed.keys.new_zeros(0, KEYS)]
    for members in groups:
        if not members:
            sums.append(packed.sums.new_zeros(1, SUMS))
            keys.append(packed.keys.new_full((1, KEYS), -1))
            continue
        rows = packed.rows(members)
        keys.append(rows.keys.amax(dim=0, keepdim=True))
        sums.append(align(rows, keys[-1], norm_type).sum(dim=0, keepdim=True))
    return Packed(torch.cat(sums), torch.cat(keys))


def join(parts: Sequence[Packed]) -> Packed:
    """Concatenate the rows of all parts."""
    return Packed(torch.cat([part.sums for part in parts]), torch.cat([part.keys for part in parts]))


def as_measured(
    rows: Packed,
    totals: Packed,
    grads: Sequence[Tensor | None],
    report: torch.dtype,
    norm_type: float,
    count_zeros: bool,
    inv_scale: float | Tensor,
) -> Measured:
    """The statistics of packed rows.

    Args:
        rows: one per position.
        totals: one per named group, then one for the whole list.
        report: the dtype that norms are returned in.
    """
    scale = inv_scale.abs() if isinstance(inv_scale, Tensor) else abs(inv_scale)
    norm_scale: float | Tensor = 1.0 if norm_type == 0 else scale  # order 0 counts elements
    wide = finish(rows, norm_type) * norm_scale
    norm = wide.to(report)
    whole = finish(totals, norm_type) * norm_scale
    rounded = whole[-1].to(report)
    return Measured(
        norm=norm,
        l2_norm=norm if norm_type == 2.0 else (finish_l2(rows) * scale).to(report),
        max_abs=(decode_max(rows) * scale).to(report),
        nonfinite=rows.sums[:, NONFINITE].long(),
        zeros=rows.sums[:, ZEROS].long() if count_zeros else None,
        total_norm=rounded,
        decision_norm=decision_norm(whole[-1], rounded),
        nonfinite_total=totals.sums[-1, NONFINITE],
        has_grad=tuple(g is not None for g in grads),
        wide_norm=wide,
        group_norm=whole[:-1],
    )


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
    reference = x.amin() if _smallest_dominates(norm_type) else largest
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
