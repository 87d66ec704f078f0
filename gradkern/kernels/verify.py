"""`GRADKERN_VERIFY=1`: the result of every call is compared with float64, computed by torch. For debugging.

DTensors are gathered on every rank. A call with `process_group=` or `pp_group=` is not compared, because no
rank has the tensors of the others. For a Partial gradient only the norm is compared: its elements are sums,
and a sum of rounded products differs from the rounded product of the sum.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradkern.kernels.dtensors import gathered, is_dtensor
from gradkern.kernels.measured import Measured
from gradkern.kernels.shared_memory import each_once, same_memory
from gradkern.kernels.torch_ops import magnitudes, vector_norm

#: The largest relative difference between correct results: two units in the last place of the result's
#: dtype, plus the error of the reference.
TOLERANCE = {torch.float32: 2.0**-22, torch.float64: 1e-13}


class Verified:
    """A backend (the extension, or the functions over ranks) whose results are compared.

    Functions that are not defined here are passed through.

    Raises:
        RuntimeError: by each function, if a result differs from that of float64; gives both numbers.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def clip_grad_norm_(
        self, params: Sequence[Tensor], max_norm: float, norm_type: float, error: bool, *groups: Any
    ) -> Tensor | None:
        before = snapshot([p.grad for p in params])
        total: Tensor | None = self._backend.clip_grad_norm_(params, max_norm, norm_type, error, *groups)
        if total is not None and not any(groups):
            check_clip("clip_grad_norm_", before, params, max_norm, norm_type, total)
        return total

    def get_total_norm(
        self, tensors: Sequence[Tensor], norm_type: float, error: bool, *groups: Any
    ) -> Tensor | None:
        total: Tensor | None = self._backend.get_total_norm(tensors, norm_type, error, *groups)
        if total is not None and not any(groups):
            check_total("get_total_norm", tensors, norm_type, total)
        return total

    def clip_grads_with_norm_(self, params: Sequence[Tensor], max_norm: float, total: Tensor) -> Any:
        before = snapshot([p.grad for p in params])
        done = self._backend.clip_grads_with_norm_(params, max_norm, total)
        if done is not False:
            check_clip_by("clip_grads_with_norm_", before, params, max_norm, float(gathered(total)))
        return done

    def clip_grad_value_(self, params: Sequence[Tensor], limit: float) -> Any:
        before = snapshot([p.grad for p in params])
        done = self._backend.clip_grad_value_(params, limit)
        if done is not False:
            check_clamped("clip_grad_value_", before, params, limit)
        return done

    def measure(self, params: Sequence[Tensor], norm_type: float, *options: Any) -> Any:
        columns = self._backend.measure(params, norm_type, *options)
        if columns is not None:
            grads = [p.grad for p in params]
            check_rows("measure", snapshot(grads), grads, Measured(**columns), norm_type, options[1])
        return columns

    def clip(self, params: Sequence[Tensor], max_norm: float, norm_type: float, *options: Any) -> Any:
        grads = [p.grad for p in params]
        before = snapshot(grads)
        columns = self._backend.clip(params, max_norm, norm_type, *options)
        if columns is not None:
            measured = Measured(**columns)
            check_rows("GradClipper.clip_", before, grads, measured, norm_type)
            zeroed = options[0] == "zero" and bool(measured.bad())
            assert measured.clip_coef is not None
            check_scaled("GradClipper.clip_", before, grads, measured.clip_coef, zeroed)
        return columns

    def clip_by_groups(
        self,
        params: Sequence[Tensor],
        plan: Any,
        norm_type: float,
        on_nonfinite: str,
        *options: Any,
    ) -> Any:
        grads = [p.grad for p in params]
        before = snapshot(grads)
        columns = self._backend.clip_by_groups(params, plan, norm_type, on_nonfinite, *options)
        if columns is not None and "shared" not in columns:
            own = {f.name for f in dataclasses.fields(Measured)}
            measured = Measured(**{key: value for key, value in columns.items() if key in own})
            check_rows("GradClipper.clip_", before, grads, measured, norm_type)
            zeroed = on_nonfinite == "zero" and bool(measured.bad())
            factor = columns["clip_coef"] if columns["_factor"] is None else columns["_factor"]
            if not plan.elementwise:  # whose factors are ratios of norms
                check_scaled("GradClipper.clip_", before, grads, factor, zeroed)
        return columns

    def scale_(self, grads: Sequence[Tensor | None], factor: Tensor, *zeroing: Tensor | None) -> bool:
        zero = zeroing[0] if zeroing else None
        before = snapshot(grads)
        done: bool = self._backend.scale_(grads, factor, *zeroing)
        if done:
            check_scaled("scale_", before, grads, factor, zero is not None and bool(zero))
        return done


def snapshot(grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Copies of the gradients before they are clipped."""
    return [None if g is None else _copied(g) for g in _whole(grads)]


def _copied(grad: Tensor) -> Tensor | None:
    try:
        return grad.clone()
    except (RuntimeError, TypeError):  # the backend raises for it, with its name
        return None


def _whole(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The tensors with DTensors gathered. A tensor listed twice stays one tensor."""
    found: dict[int, Tensor] = {}
    return [t if t is None or not is_dtensor(t) else found.setdefault(id(t), gathered(t)) for t in tensors]


def reference_norm(tensors: Sequence[Tensor | None], norm_type: float) -> float:
    parts = [magnitudes(t).flatten() for t in each_once(tensors)]
    return float(vector_norm(torch.cat(parts), norm_type)) if parts else 0.0


def check_total(operation: str, tensors: Sequence[Tensor], norm_type: float, total: Tensor) -> None:
    expected = reference_norm(_whole(tensors), norm_type)
    _compare(operation, "total_norm", float(gathered(total)), expected, total.dtype)


def check_clip(
    operation: str,
    before: Sequence[Tensor | None],
    params: Sequence[Tensor],
    max_norm: float,
    norm_type: float,
    total: Tensor,
) -> None:
    """Compare the norm and the clipped gradients."""
    expected = reference_norm(_counted_once(before, [p.grad for p in params]), norm_type)
    norm = float(gathered(total))
    _compare(operation, "total_norm", norm, expected, total.dtype)
    check_clip_by(operation, before, params, max_norm, expected if math.isinf(norm) else norm)


def check_clip_by(
    operation: str,
    before: Sequence[Tensor | None],
    params: Sequence[Tensor],
    max_norm: float,
    total: float,
) -> None:
    """Compare gradients with ``before * min(1, max_norm / (total + 1e-6))``."""
    coef = max_norm / (total + 1e-6)
    factor = 1.0 if coef >= 1 or max_norm == math.inf else coef
    check_scaled(operation, before, [p.grad for p in params], factor)


def check_scaled(
    operation: str,
    before: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    factor: float | Tensor,
    zeroed: bool = False,
) -> None:
    """Compare gradients with ``before * factor`` (0-d or [N]), or with zero."""
    of_each = isinstance(factor, Tensor) and factor.ndim > 0
    # The coefficient of norms beyond float32 is one of its subnormal numbers, which are 1.4e-45 apart.
    rounding = 2.0**-149 if isinstance(factor, Tensor) and factor.dtype is torch.float32 else 0.0
    first: dict[object, int] = {}
    for index, (old, grad) in enumerate(zip(before, grads)):
        if old is None or grad is None or _is_partial(grad):
            continue
        own = first.setdefault(same_memory(grad), index)  # equal entries have the factor of the first
        scale = float(factor[own] if of_each else factor)  # type: ignore[index]
        old, new = _reals(old), _reals(grad)
        wanted = torch.zeros_like(old, dtype=torch.float64) if zeroed else old.double() * scale
        slack = rounding * float(old.double().abs().nan_to_num(posinf=0.0).amax()) if old.numel() else 0.0
        _compare_elements(
            operation, index, new, wanted, f"{0.0 if zeroed else scale} times what it was", slack
        )


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
    grads: Sequence[Tensor | None],
    measured: Measured,
    norm_type: float,
    inv_scale: float = 1.0,
) -> None:
    """Compare statistics with those of `before`, the gradients that were measured."""
    factor = abs(inv_scale)
    norm_factor = 1.0 if norm_type == 0 else factor
    total = measured.total_norm
    expected = reference_norm(_counted_once(before, grads), norm_type) * norm_factor
    _compare(operation, "total_norm", float(total), expected, total.dtype)
    for row, grad in enumerate(before):
        one = [] if grad is None else [grad]
        for key, order, scale in (
            ("norm", norm_type, norm_factor),
            ("l2_norm", 2.0, factor),
            ("max_abs", math.inf, factor),
        ):
            found, wanted = getattr(measured, key)[row], reference_norm(one, order) * scale
            _compare(operation, f"{key}[{row}]", float(found), wanted, found.dtype)
        values = torch.zeros(0, device="cpu") if grad is None else magnitudes(grad)
        _compare_count(operation, f"nonfinite[{row}]", measured.nonfinite[row], ~values.isfinite())
        if measured.zeros is not None:
            _compare_count(operation, f"zeros[{row}]", measured.zeros[row], values == 0)


def _counted_once(before: Sequence[Tensor | None], grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The copies, with None in place of gradients that are listed a second time."""
    originals = _whole(grads)
    counted = {id(t) for t in each_once(originals)}
    first: list[Tensor | None] = []
    for old, grad in zip(before, originals):
        first.append(old if id(grad) in counted else None)
        counted.discard(id(grad))
    return first


def _is_partial(grad: Any) -> bool:
    return is_dtensor(grad) and any(placement.is_partial() for placement in grad.placements)


def _reals(grad: Tensor) -> Tensor:
    if is_dtensor(grad):
        grad = gathered(grad)
    dense = grad.detach().to_dense() if grad.is_sparse else grad.detach()
    # Real and imaginary parts apart: inf times a complex number would make the other part NaN.
    return torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense


def _compare_elements(
    operation: str, index: int, new: Tensor, wanted: Tensor, what: str, slack: float = 0.0
) -> None:
    limits = torch.finfo(new.dtype)
    expected = wanted.to(new.dtype).double()
    atol = limits.tiny + slack
    if not torch.allclose(new.double(), expected, rtol=2 * limits.eps, atol=atol, equal_nan=True):
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
