"""Scaling gradients by a factor that may live on a device."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from gradkern.kernels.extension import DISABLED, C
from gradkern.kernels.torch_ops import widest


def coefficient(total: Tensor, max_norm: float | Tensor) -> Tensor:
    """The factor of csrc/core/clip.h with tensors, for a finite limit: 0-d, on `total`'s device.

    ``max_norm / (total + 1e-6)`` where that is below 1, or NaN; else 1.
    """
    one = torch.ones((), dtype=widest(total), device=total.device)
    # A tensor divided: a number divided by a tensor would be rounded twice.
    ratio = one * max_norm / (total.to(one.dtype) + 1e-6)
    return torch.where(ratio >= 1, one, ratio)


def is_one(factor: Tensor) -> bool:
    """Whether nothing is to be written, where that is known without a synchronisation."""
    return factor.is_cpu and float(factor) == 1.0


def scale_(grads: Sequence[Tensor | None], shards: Sequence[Tensor | None], factor: Tensor) -> None:
    """Multiply every shard by `factor`, or shard i by ``factor[i]``, in place.

    Args:
        grads: the gradients, whose version counters are bumped where a shard is not the gradient
            itself.
        shards: what is written to (a DTensor's local tensor); entries that are None are skipped.
        factor: float64, 0-d or one number a shard. A factor of 1 writes nothing.

    Notes:
        A list that is all on the factor's device is scaled without a synchronisation. A shard listed
        twice is scaled once, by its first factor.
    """
    if factor.dim() == 0 and is_one(factor):
        return
    devices = {s.device for s in shards if s is not None}
    for device in devices:
        listed = [s if s is not None and s.device == device else None for s in shards]
        here = factor.to(device)
        if DISABLED or not C.scale_(listed, here):
            _scale_with_torch(listed, here)
    written = [g for g, s in zip(grads, shards) if g is not None and g is not s]
    if written:
        torch.autograd.graph.increment_version(written)


def _scale_with_torch(tensors: Sequence[Tensor | None], factor: Tensor) -> None:
    seen: set[object] = set()
    for t, own in zip(tensors, factor.expand(len(tensors)).unbind()):
        if t is None:
            continue
        key = id(t) if t.is_sparse else (t.data_ptr(), t.dtype, t.shape, t.stride())
        if key in seen and t.numel():
            continue
        seen.add(key)
        wide = t.dtype in (torch.float64, torch.complex128)
        number = own.to(torch.float64 if wide else torch.float32)
        if t.is_cpu or t.is_sparse or t.dtype not in (torch.bfloat16, torch.float16):
            t.mul_(number)
        else:
            # A device's mul_ would round a 0-d factor to these types first: 1 part in 256 off.
            t.copy_(t.float().mul_(number))


def zero_where_(shards: Sequence[Tensor | None], condition: Tensor) -> None:
    """Set everything to zero where the 0-d `condition` holds (0 * NaN would not)."""
    for shard in shards:
        if shard is None:
            continue
        here = condition.to(shard.device)
        if shard.device.type == "cpu" and not bool(here):
            continue
        values = shard._values() if shard.is_sparse else shard
        if values.dtype.itemsize == 1:  # masked_fill_ knows no float8, whose zeros are zero bytes
            values = values.view(torch.uint8)
        with torch.inference_mode() if values.is_inference() else contextlib.nullcontext():
            values.masked_fill_(here, 0)
