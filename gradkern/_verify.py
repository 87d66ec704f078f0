"""`GRADKERN_VERIFY=1`: every call is compared with float64, computed by torch. Slow; for debugging."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gradkern._fallback import magnitudes, vector_norm

#: Relative distance that two correct results can have: two units in the last place of the result's
#: type, plus what the reference itself may be off by.
TOLERANCE = {torch.float32: 2.0**-22, torch.float64: 1e-13}


def snapshot(params: Sequence[Tensor]) -> list[Tensor | None]:
    """Copies of the gradients, before they are clipped."""
    return [None if p.grad is None else p.grad.detach().clone() for p in params]


def _unique(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    seen: dict[tuple[object, ...], Tensor] = {}
    for t in tensors:
        if t is None or t.numel() == 0:
            continue
        key: tuple[object, ...] = (
            (id(t),) if t.is_sparse else (t.device, t.data_ptr(), t.dtype, t.shape, t.stride())
        )
        seen.setdefault(key, t)
    return list(seen.values())


def reference_norm(tensors: Sequence[Tensor | None], norm_type: float) -> float:
    parts = [magnitudes(t).flatten() for t in _unique(tensors)]
    return float(vector_norm(torch.cat(parts), norm_type)) if parts else 0.0


def check_total(operation: str, tensors: Sequence[Tensor], norm_type: float, total: Tensor) -> None:
    _compare(operation, "total_norm", float(total), reference_norm(tensors, norm_type), total.dtype)


def check_clip(
    operation: str,
    before: Sequence[Tensor | None],
    params: Sequence[Tensor],
    max_norm: float,
    norm_type: float,
    total: Tensor,
) -> None:
    """Compare norm and clipped gradients with what they should be.

    Raises:
        RuntimeError: they differ; says by how much.
    """
    originals = [p.grad for p in params]
    counted = {id(t) for t in _unique(originals)}
    first: list[Tensor | None] = []
    for old_grad, grad in zip(before, originals):
        first.append(old_grad if id(grad) in counted else None)
        counted.discard(id(grad))  # listed again, it counts no second time
    _compare(operation, "total_norm", float(total), reference_norm(first, norm_type), total.dtype)
    coef = max_norm / (float(total) + 1e-6)
    scale = 1.0 if coef >= 1 or max_norm == math.inf else coef
    for index, (old, new) in enumerate(zip(before, originals)):
        if old is None or new is None or old.is_sparse:
            continue
        if old.is_complex():  # part by part: inf times a complex number would make NaN of the other part
            old, new = torch.view_as_real(old.resolve_conj()), torch.view_as_real(new.resolve_conj())
        expected = (old.double() * scale).to(old.dtype)
        eps = torch.finfo(old.dtype).eps
        close = torch.allclose(
            new.double(), expected.double(), rtol=2 * eps, atol=torch.finfo(old.dtype).tiny, equal_nan=True
        )
        if not close:
            raise RuntimeError(
                f"[{operation}] GRADKERN_VERIFY: gradient {index} is not {scale} times what it was"
            )


def _compare(operation: str, name: str, got: float, expected: float, dtype: torch.dtype) -> None:
    if math.isnan(expected) and math.isnan(got):
        return
    limit = torch.finfo(dtype).max
    if got == expected or (math.isinf(got) and abs(expected) > limit):
        return
    smallest = torch.finfo(dtype).smallest_normal
    if abs(got - expected) > TOLERANCE[dtype] * max(abs(expected), smallest):
        raise RuntimeError(f"[{operation}] GRADKERN_VERIFY: {name} is {got!r}, float64 says {expected!r}")
