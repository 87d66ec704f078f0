"""`GRADKERN_VERIFY=1`: every call is compared with float64, computed by torch. Slow; for debugging.

DTensors are gathered whole for it, on every rank; a call with `process_group=` or `pp_group=` is not
compared, because no rank could know the others' tensors. Of a Partial gradient only the norm is: its
elements are sums, and a sum of rounded products is not the rounded product of the sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradkern.clipping import route
from gradkern.kernels.torch_ops import magnitudes, vector_norm

#: Relative distance that two correct results can have: two units in the last place of the result's
#: type, plus what the reference itself may be off by.
TOLERANCE = {torch.float32: 2.0**-22, torch.float64: 1e-13}


def snapshot(params: Sequence[Tensor]) -> list[Tensor | None]:
    """Copies of the gradients, before they are clipped."""
    return [None if g is None else g.clone() for g in _whole([p.grad for p in params])]


def _whole(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """DTensors gathered; a tensor listed twice stays one tensor."""
    gathered: dict[int, Tensor] = {}
    return [
        t if t is None or not route.is_dtensor(t) else gathered.setdefault(id(t), _gather(t)) for t in tensors
    ]


def _gather(tensor: Any) -> Tensor:
    full: Tensor = tensor.detach().full_tensor()
    return full


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
    expected = reference_norm(_whole(tensors), norm_type)
    _compare(operation, "total_norm", number(total), expected, total.dtype)


def number(total: Tensor) -> float:
    """The value of a norm, gathered if need be."""
    return float(_gather(total)) if route.is_dtensor(total) else float(total)


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
    expected = reference_norm(_counted_once(before, params), norm_type)
    norm = number(total)
    _compare(operation, "total_norm", norm, expected, total.dtype)
    check_clip_by(operation, before, params, max_norm, norm)


def check_clip_by(
    operation: str,
    before: Sequence[Tensor | None],
    params: Sequence[Tensor],
    max_norm: float,
    total: float,
) -> None:
    """Compare gradients with ``before * min(1, max_norm / (total + 1e-6))``."""
    coef = max_norm / (total + 1e-6)
    check_scaled(operation, before, params, 1.0 if coef >= 1 or max_norm == math.inf else coef)


def check_scaled(
    operation: str,
    before: Sequence[Tensor | None],
    params: Sequence[Tensor],
    scale: float,
    zeroed: bool = False,
) -> None:
    """Compare gradients with ``before * scale``, or with zero."""
    for index, (old, param) in enumerate(zip(before, params)):
        if old is None or param.grad is None or _is_partial(param.grad):
            continue
        old, new = _reals(old), _reals(param.grad)
        wanted = torch.zeros_like(old, dtype=torch.float64) if zeroed else old.double() * scale
        _compare_elements(operation, index, new, wanted, f"{0.0 if zeroed else scale} times what it was")


def check_clamped(
    operation: str, before: Sequence[Tensor | None], params: Sequence[Tensor], limit: float
) -> None:
    """Compare gradients with ``clamp(before, -limit, limit)``."""
    for index, (old, param) in enumerate(zip(before, params)):
        if old is not None and param.grad is not None:
            wanted = _reals(old).double().clamp(-limit, limit)
            _compare_elements(operation, index, _reals(param.grad), wanted, f"what it was within ±{limit}")


def check_rows(
    operation: str,
    before: Sequence[Tensor | None],
    params: Sequence[Tensor],
    columns: Mapping[str, Any],
    norm_type: float,
    inv_scale: float = 1.0,
) -> None:
    """Compare statistics with what they should be, `before` being the gradients they are of."""
    factor = abs(inv_scale)
    norm_factor = 1.0 if norm_type == 0 else factor
    total = columns["total_norm"]
    expected = reference_norm(_counted_once(before, params), norm_type) * norm_factor
    _compare(operation, "total_norm", float(total), expected, total.dtype)
    for row, grad in enumerate(before):
        one = [] if grad is None else [grad]
        for key, order, scale in (
            ("norm", norm_type, norm_factor),
            ("l2_norm", 2.0, factor),
            ("max_abs", math.inf, factor),
        ):
            found, wanted = columns[key][row], reference_norm(one, order) * scale
            _compare(operation, f"{key}[{row}]", float(found), wanted, found.dtype)
        values = torch.zeros(0) if grad is None else magnitudes(grad)
        _compare_count(operation, f"nonfinite[{row}]", columns["nonfinite"][row], ~values.isfinite())
        if columns.get("zeros") is not None:
            _compare_count(operation, f"zeros[{row}]", columns["zeros"][row], values == 0)


def _counted_once(before: Sequence[Tensor | None], params: Sequence[Tensor]) -> list[Tensor | None]:
    """The copies of those gradients that are not listed a second time."""
    originals = _whole([p.grad for p in params])
    counted = {id(t) for t in _unique(originals)}
    first: list[Tensor | None] = []
    for old, grad in zip(before, originals):
        first.append(old if id(grad) in counted else None)
        counted.discard(id(grad))
    return first


def _is_partial(grad: Any) -> bool:
    return route.is_dtensor(grad) and any(placement.is_partial() for placement in grad.placements)


def _reals(grad: Tensor) -> Tensor:
    if route.is_dtensor(grad):
        grad = _gather(grad)
    dense = grad.detach().to_dense() if grad.is_sparse else grad.detach()
    # Part by part: inf times a complex number would make NaN of the other part.
    return torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense


def _compare_elements(operation: str, index: int, new: Tensor, wanted: Tensor, what: str) -> None:
    limits = torch.finfo(new.dtype)
    expected = wanted.to(new.dtype).double()
    if not torch.allclose(new.double(), expected, rtol=2 * limits.eps, atol=limits.tiny, equal_nan=True):
        raise RuntimeError(f"[{operation}] GRADKERN_VERIFY: gradient {index} is not {what}")


def _compare_count(operation: str, name: str, got: Tensor, mask: Tensor) -> None:
    if int(got) != int(mask.sum()):
        raise RuntimeError(f"[{operation}] GRADKERN_VERIFY: {name} is {int(got)}, counted {int(mask.sum())}")


def _compare(operation: str, name: str, got: float, expected: float, dtype: torch.dtype) -> None:
    if math.isnan(expected) and math.isnan(got):
        return
    limit = torch.finfo(dtype).max
    if got == expected or (math.isinf(got) and abs(expected) > limit):
        return
    smallest = torch.finfo(dtype).smallest_normal
    if abs(got - expected) > TOLERANCE[dtype] * max(abs(expected), smallest):
        raise RuntimeError(f"[{operation}] GRADKERN_VERIFY: {name} is {got!r}, float64 says {expected!r}")
