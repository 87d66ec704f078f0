"""The clip coefficient and scaling, with torch's own operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from gradkern.kernels.shared_memory import overlapping, same_memory


def known_bool(condition: Tensor) -> bool | None:
    """The value of a 0-d bool; None if it has none (batched by `torch.vmap`, fake, traced, meta)."""
    if torch.compiler.is_compiling() or condition.is_meta or isinstance(condition, FakeTensor):
        return None
    try:
        return bool(condition)
    except (RuntimeError, TypeError):  # batched, or a subclass that does not give its value
        return None


def widest(tensor: Tensor) -> torch.dtype:
    """The dtype that norms are computed in: float64, or float32 on devices without it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


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


def unexpanded(tensor: Tensor) -> Tensor:
    """A view that has each element of an expanded tensor once, which in-place operations accept."""
    if tensor.layout is torch.strided and not tensor.is_nested:
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride())):
            if size > 1 and stride == 0:
                tensor = tensor.narrow(dim, 0, 1)
    return tensor


def scale_with_torch(grads: Sequence[Tensor | None], factor: Tensor, in_double: bool = False) -> None:
    """Scale in place. On a CPU a factor of 1 writes nothing.

    Each memory location is scaled once. Where tensors overlap, the factor of the first one counts.

    Args:
        factor: 0-d for all, or [N].
        in_double: multiply in float64, for factors that may be too small for float32.
    """
    seen: set[object] = set()
    apart = overlapping(grads)
    results: list[tuple[Tensor, Tensor]] = []
    for position, grad in enumerate(grads):
        if grad is None or not grad.numel() or (key := same_memory(grad)) in seen:
            continue
        seen.add(key)
        own = factor[position] if factor.ndim else factor
        if own.is_cpu and known_bool(own == 1.0):
            continue
        target, own = unexpanded(grad), own.to(grad.device)
        wide = in_double or bool(own.is_cpu and known_bool(own < _SMALLEST))
        if position in apart:
            results.append((target, _product(target, own, wide)))
        else:
            _multiply(target, own, wide)
    for target, result in reversed(results):
        target.copy_(result)


_SMALLEST = torch.finfo(torch.float32).smallest_normal


def _multiply(grad: Tensor, factor: Tensor, in_double: bool) -> None:
    # A device's mul_ would round a 0-d factor to these types first, 1 part in 256 off.
    narrow = grad.dtype in (torch.bfloat16, torch.float16) and not grad.is_cpu and not grad.is_sparse
    if in_double or narrow or grad.dtype.itemsize == 1:
        grad.copy_(_product(grad, factor, in_double))
    else:
        double = grad.dtype in (torch.float64, torch.complex128)
        grad.mul_(factor.to(torch.float64 if double else torch.float32))


def _product(grad: Tensor, factor: Tensor, in_double: bool) -> Tensor:
    if in_double:
        wide = torch.complex128 if grad.is_complex() else widest(grad)
        return grad.to(wide) * factor
    wide = torch.float32 if grad.dtype.itemsize < 4 else grad.dtype
    double = wide in (torch.float64, torch.complex128)
    return grad.to(wide) * factor.to(torch.float64 if double else torch.float32)
