"""Reduce packed rows over the ranks of a group.

Every shape depends only on the order of the norm, the number of rows and the size of the group. Ranks
without gradients or with empty shards therefore take part like all others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from gradkern.distributed.groups import group_device
from gradkern.distributed.packed import (
    POWER_HI,
    POWER_LO,
    REF_KEY,
    Packed,
    align,
    decode_reference,
    encode_reference,
    is_power,
)


def _all_reduce(tensor: Tensor, operation: str, group: dist.ProcessGroup) -> Tensor:
    """All-reduce with torch's functional operator, which its communication debugging tools see."""
    operators = torch.ops._c10d_functional
    return operators.wait_tensor(operators.all_reduce(tensor.contiguous(), operation, group.group_name))


def all_reduce_(tensor: Tensor, operation: dist.ReduceOp.RedOpType, group: dist.ProcessGroup) -> None:
    """All-reduce in place, which costs less on the host."""
    dist.all_reduce(tensor, op=operation, group=group)


def any_rank(flag: Tensor, groups: Sequence[dist.ProcessGroup]) -> Tensor:
    """0-d bool: whether the flag is set on any rank of the groups. One all-reduce of 4 bytes per group."""
    device, number = flag.device, flag.int()
    for group in groups:
        number = _all_reduce(number.to(group_device(group)), "max", group)
    return number.to(device) > 0


def reduce_total(packed: Packed, groups: Sequence[dist.ProcessGroup], norm_type: float) -> Packed:
    """Reduce the total row over the ranks of all groups: one small all-reduce per group.

    This is a SUM for orders 2, 1 and 0 (88 bytes) and a MAX for the infinite orders (16 bytes). Other orders
    need the dominant magnitude and sums relative to it: each rank puts its own into a slot of one SUM
    (16 bytes per rank). Only the columns that `finish` reads for this order are valid in the result.
    """
    for group in groups:
        if is_power(norm_type):
            packed = _reduce_power(packed, group, norm_type)
        elif math.isinf(norm_type):
            packed = Packed(packed.sums, _all_reduce(packed.keys, "max", group))
        else:
            packed = Packed(_all_reduce(packed.sums, "sum", group), packed.keys)
    return packed


def _reduce_power(packed: Packed, group: dist.ProcessGroup, norm_type: float) -> Packed:
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    slots = packed.sums.new_zeros(size, 2)
    slots[rank, 0] = packed.sums[0, POWER_HI] + packed.sums[0, POWER_LO]
    slots[rank, 1] = decode_reference(packed.keys[:, REF_KEY], norm_type)[0]
    flat = _all_reduce(torch.cat([packed.sums[0], slots.flatten()]), "sum", group)
    sums, slots = flat[: -2 * size][None].clone(), flat[-2 * size :].view(size, 2)
    present = slots[:, 0] != 0
    keys = encode_reference(slots[:, 1], norm_type, present)
    dominant = keys.amax()
    reference = decode_reference(dominant[None], norm_type)
    factor = torch.where(slots[:, 1] == reference, 1.0, (slots[:, 1] / reference) ** norm_type)
    sums[0, POWER_HI] = torch.where(present, slots[:, 0] * factor, 0.0).sum()
    sums[0, POWER_LO] = 0.0
    return Packed(sums, torch.stack([packed.keys[0, 0], dominant])[None])


def reduce_rows(packed: Packed, groups: Sequence[dist.ProcessGroup], norm_type: float) -> Packed:
    """Reduce every row over the ranks of all groups: a MAX and a SUM per group."""
    for group in groups:
        keys = packed.keys.clone()
        if is_power(norm_type):  # the sums are relative to the magnitude that MAX finds
            all_reduce_(keys, dist.ReduceOp.MAX, group)
            sums = align(packed, keys, norm_type)
            all_reduce_(sums, dist.ReduceOp.SUM, group)
        else:
            sums = packed.sums.clone()
            both = (
                dist.all_reduce(keys, op=dist.ReduceOp.MAX, group=group, async_op=True),
                dist.all_reduce(sums, op=dist.ReduceOp.SUM, group=group, async_op=True),
            )
            for work in both:
                if work is not None:
                    work.wait()
        packed = Packed(sums, keys)
    return packed
