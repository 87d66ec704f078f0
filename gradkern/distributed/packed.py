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
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from gradkern._util import moved
from gradkern.kernels.measured import Measured, decision_norm
from gradkern.kernels.torch_ops import power_norm

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


def smallest_dominates(norm_type: float) -> bool:
    """Whether the reference magnitude of this order is the smallest one, not the largest."""
    return norm_type < 0


def encode_reference(reference: Tensor, norm_type: float, present: Tensor) -> Tensor:
    """Keys whose MAX is that of the dominant reference magnitude (float64, >= 0 or NaN)."""
    bits = reference.contiguous().view(torch.int64)
    ordered = _INF_BITS - bits if smallest_dominates(norm_type) else bits
    ordered = torch.where(reference.isnan(), _NAN_KEY, ordered)
    return torch.where(present, ordered, -1)


def decode_reference(keys: Tensor, norm_type: float) -> Tensor:
    """The reference magnitudes of keys; 0 where there is none."""
    bits = keys.contiguous()
    if smallest_dominates(norm_type):
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
    root = power_norm(decode_reference(packed.keys[:, REF_KEY], norm_type), power, norm_type)
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


if not TYPE_CHECKING:
    __getattr__ = moved.forward(__name__)  # names of 0.1
