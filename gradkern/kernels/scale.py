"""Scale gradients by factors that may be on a device, or clamp them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from gradkern.kernels.backend import C
from gradkern.kernels.torch_scale import known_bool, scale_with_torch


def is_one(factor: Tensor) -> bool:
    """Whether all factors are 1. False if that cannot be known, or not without a synchronisation."""
    return factor.is_cpu and known_bool((factor == 1.0).all()) is True


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


def clamp_(shards: Sequence[Tensor | None], limit: float) -> None:
    """Clamp every element to ``[-limit, limit]``, in place. NaN stays NaN.

    Args:
        shards: the tensors to write to. None is skipped.
    """
    if C.clamp_(shards, limit):
        return
    for shard in shards:
        if shard is not None:
            shard.clamp_(-limit, limit)


def _scale_on_device(shards: Sequence[Tensor | None], factor: Tensor, zero: Tensor | None) -> None:
    if C.scale_(shards, factor, zero):
        return
    if zero is not None:
        factor = torch.where(zero, torch.ones_like(factor), factor)
    scale_with_torch(shards, factor)
    if zero is not None:
        _zero_where_(shards, zero)


def _zero_where_(shards: Sequence[Tensor | None], condition: Tensor) -> None:
    for shard in shards:
        if shard is None:
            continue
        values = shard._values() if shard.is_sparse else shard
        if values.dtype.itemsize == 1:  # masked_fill_ does not support float8, in which zero is a zero byte
            values = values.view(torch.uint8)
        with torch.inference_mode() if values.is_inference() else contextlib.nullcontext():
            values.masked_fill_(condition, 0)
