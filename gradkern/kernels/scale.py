"""Scale gradients by factors that may be on a device."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from gradkern.kernels.backend import C
from gradkern.kernels.torch_ops import overlapping, same_memory, unexpanded, widest


def coefficient(total: Tensor, max_norm: float | Tensor) -> Tensor:
    """The factor to clip by (csrc/core/clip.h), with the shape and device of `total`.

    ``max_norm / (total + 1e-6)`` where that is below 1 or NaN, else 1. A negative `total`, which cannot be a
    norm, gives 1.
    """
    wide = widest(total)
    # Divide tensors: torch rounds a Python number to the tensor's dtype before it divides.
    limit = torch.ones((), dtype=wide, device=total.device) * max_norm
    ratio = limit / (total.to(wide) + 1e-6)
    return ratio.masked_fill((ratio >= 1) | (total < 0) | (limit < 0) | limit.isposinf(), 1.0)


def is_one(factor: Tensor) -> bool:
    """Whether all factors are 1. False if that cannot be known without a synchronisation."""
    return factor.is_cpu and bool((factor == 1.0).all())


def scale_(
    grads: Sequence[Tensor | None],
    shards: Sequence[Tensor | None],
    factor: Tensor,
    zero: Tensor | None = None,
) -> None:
    """Multiply every shard by its factor, in place. On a CPU a factor of 1 writes nothing.

    Args:
        grads: the gradients. Their version counters are bumped if the shard is another tensor.
        shards: the tensors to write to (the local tensor of a DTensor). None is skipped. A tensor listed
            twice is scaled once, by the first of its factors.
        factor: float64: 0-d for all shards, or [N].
        zero: 0-d bool: set all shards to zero instead if it is true (0 * NaN would be NaN).

    Notes:
        No synchronisation if all shards are on the factor's device.
    """
    if zero is not None and zero.is_cpu:
        zero = zero if bool(zero) else None
    if zero is None and is_one(factor):
        return
    for device in {s.device for s in shards if s is not None}:
        listed = [s if s is not None and s.device == device else None for s in shards]
        _scale_on_device(listed, factor.to(device), None if zero is None else zero.to(device))
    written = [g for g, s in zip(grads, shards) if g is not None and g is not s]
    if written:
        torch.autograd.graph.increment_version(written)


def _scale_on_device(shards: Sequence[Tensor | None], factor: Tensor, zero: Tensor | None) -> None:
    if C.scale_(shards, factor, zero):
        return
    if zero is not None:
        factor = torch.where(zero, torch.ones_like(factor), factor)
    _scale_with_torch(shards, factor)
    if zero is not None:
        _zero_where_(shards, zero)


def _scale_with_torch(shards: Sequence[Tensor | None], factor: Tensor) -> None:
    """Each memory location is scaled once. Where tensors overlap, the factor of the first one counts."""
    seen: set[object] = set()
    apart = overlapping(shards)
    results: list[tuple[Tensor, Tensor]] = []
    for position, t in enumerate(shards):
        if t is None or not t.numel():
            continue
        key = same_memory(t)
        if key in seen:
            continue
        seen.add(key)
        own = factor[position] if factor.ndim else factor
        if own.is_cpu and float(own) == 1.0:
            continue
        t = unexpanded(t)
        wide = t.dtype in (torch.float64, torch.complex128)
        number = own.to(torch.float64 if wide else torch.float32)
        # A device's mul_ would round a 0-d factor to these types first, 1 part in 256 off.
        narrow = t.dtype in (torch.bfloat16, torch.float16) and not t.is_cpu
        if position in apart:
            results.append((t, t * number))
        elif t.is_sparse or not (narrow or t.dtype.itemsize == 1):
            t.mul_(number)
        else:
            t.copy_(t.float().mul_(number))
    for t, result in reversed(results):
        t.copy_(result)


def _zero_where_(shards: Sequence[Tensor | None], condition: Tensor) -> None:
    for shard in shards:
        if shard is None:
            continue
        values = shard._values() if shard.is_sparse else shard
        if values.dtype.itemsize == 1:  # masked_fill_ does not support float8, in which zero is a zero byte
            values = values.view(torch.uint8)
        with torch.inference_mode() if values.is_inference() else contextlib.nullcontext():
            values.masked_fill_(condition, 0)
