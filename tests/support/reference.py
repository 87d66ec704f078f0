"""Reference results in float64 and wider, from the rounded gradients.

Independent of gradkern: numpy's long double (64-bit significand, exponents to 1e±4932 on x86-64) and
`math.fsum`, so that neither rounding nor range of float64 gets in the way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

#: The tolerances of the numeric contract; no test has its own.
NORM_ULP = 1  # of float32, a tensor's norm
TOTAL_ULP = 2  # of float32, a layer's and the total norm
FLOAT64_RELATIVE = 1e-14  # if any gradient is float64 or complex128
SCALED_ULP = 1  # of the gradient's own type, a scaled element

REAL = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)
DTYPES = REAL + COMPLEX


def is_wide(tensors: Iterable[Tensor | None]) -> bool:
    """Whether norms of this list are reported in float64."""
    return any(t is not None and t.dtype in (torch.float64, torch.complex128) for t in tensors)


def dense(tensor: Tensor) -> Tensor:
    return tensor.coalesce().values() if tensor.is_sparse else tensor


def magnitudes(tensor: Tensor) -> np.ndarray:
    """|x| of every element, in long double."""
    flat = dense(tensor.detach()).resolve_conj().resolve_neg().reshape(-1)
    if not flat.is_complex():
        return np.abs(flat.double().numpy().astype(np.longdouble))
    parts = torch.view_as_real(flat.to(torch.complex128)).numpy().astype(np.longdouble)
    with np.errstate(over="ignore", invalid="ignore"):
        whole = np.sqrt(parts[:, 0] ** 2 + parts[:, 1] ** 2)
    return np.where(np.isnan(parts).any(axis=1), np.longdouble("nan"), whole)


def norm_of(values: np.ndarray, p: float) -> np.longdouble:
    """The p-norm of non-negative long doubles; 0 if there are none."""
    if values.size == 0:
        return np.longdouble(0)
    if p == 0:
        return np.longdouble(np.count_nonzero(values))
    if np.isnan(values).any():
        return np.longdouble("nan")
    if p == math.inf:
        return values.max()
    if p == -math.inf:
        return values.min()
    with np.errstate(all="ignore"):
        reference = values.max() if p > 0 else values.min()
        if reference == 0 or np.isinf(reference):
            return reference
        ratios = values / reference
        if p == 2:
            return reference * np.sqrt(exact_sum(ratios * ratios))
        if p == 1:
            return reference * exact_sum(ratios)
        return reference * exact_sum(ratios ** np.longdouble(p)) ** (1 / np.longdouble(p))


def exact_sum(terms: np.ndarray) -> np.longdouble:
    """The sum of long doubles of magnitude at most 1: high and low halves by fsum, rounded once each."""
    high = terms.astype(np.float64)
    low = (terms - high).astype(np.float64)
    return np.longdouble(math.fsum(high)) + np.longdouble(math.fsum(low))


def key_of(tensor: Tensor) -> tuple[object, ...]:
    """A key that is equal for two references to the same gradient."""
    if tensor.is_sparse:
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def unique(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """Every gradient once, without the missing and the empty ones."""
    seen: dict[tuple[object, ...], Tensor] = {}
    for t in tensors:
        if t is not None and t.numel():
            seen.setdefault(key_of(t), t)
    return list(seen.values())


def total_norm(tensors: Sequence[Tensor | None], p: float = 2.0) -> np.longdouble:
    """The p-norm of everything together."""
    parts = [magnitudes(t) for t in unique(tensors)]
    return norm_of(np.concatenate(parts), p) if parts else np.longdouble(0)


def ulp_distance(got: float, expected: np.longdouble, dtype: torch.dtype = torch.float32) -> float:
    """How far `got` is from the exact value, in units in the last place of `dtype` at that value."""
    info = torch.finfo(dtype)
    smallest = math.log2(info.smallest_normal) + math.log2(info.eps)  # the spacing of subnormals
    if expected == 0:
        return float(abs(np.longdouble(got)) / np.longdouble(2) ** smallest)
    exponent = max(math.frexp(float(expected))[1] - 1 + math.log2(info.eps), smallest)
    return float(abs(np.longdouble(got) - expected) / np.longdouble(2) ** exponent)


def assert_norm(got: float, expected: np.longdouble, *, wide: bool, ulp: int) -> None:
    """`got` is the exact norm within the contract: `ulp` of float32, or relative where wide."""
    limit = torch.finfo(torch.float64 if wide else torch.float32).max
    if np.isnan(expected):
        assert math.isnan(got), f"expected NaN, got {got!r}"
        return
    if math.isinf(got):
        # Beyond the type's range, or within rounding of its end.
        assert expected > limit * (1 - 1e-7), f"expected {expected!r}, got {got!r}"
        return
    assert not math.isnan(got), f"expected {expected!r}, got NaN"
    if not wide:
        assert ulp_distance(got, expected) <= ulp, (
            f"{got!r} is {ulp_distance(got, expected)} ulp from {expected!r}"
        )
        return
    spacing = 5e-324  # subnormal results have an absolute error
    assert abs(np.longdouble(got) - expected) <= FLOAT64_RELATIVE * expected + spacing, (
        f"{got!r}, exact {expected!r}"
    )


def bits(tensor: Tensor) -> bytes:
    """The elements' bytes, to compare NaN and signed zeros too."""
    flat = dense(tensor.detach()).resolve_conj().resolve_neg().reshape(-1)
    if flat.numel() and flat.stride(0) != 1:  # a view; one element may keep a stride of its own too
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def scaled(tensor: Tensor, coef: float) -> Tensor:
    """`tensor * coef` in float64, unrounded; complex part by part."""
    if tensor.is_complex():
        whole = tensor.detach().to(torch.complex128).resolve_conj().contiguous()
        return torch.view_as_complex(torch.view_as_real(whole) * coef)
    return tensor.detach().double() * coef


def coefficient(max_norm: float, total: Tensor) -> float:
    """The clip coefficient as the contract defines it, from the returned norm."""
    return max_norm / (float(total) + 1e-6)


def assert_scaled(new: Tensor, old: Tensor, coef: float) -> None:
    """Every element of `new` is `old * coef` within SCALED_ULP of the gradient's type."""
    exact = torch.view_as_real(scaled(old, coef)) if old.is_complex() else scaled(old, coef)
    got = torch.view_as_real(new.detach().resolve_conj()) if new.is_complex() else new.detach()
    info = torch.finfo(got.dtype)
    got, exact = got.double().reshape(-1), exact.reshape(-1)
    assert bool((got.isnan() == exact.isnan()).all()), "NaN where none belongs, or none where one does"
    finite = exact.isfinite() & (exact.abs() <= info.max)
    exponent = torch.frexp(exact[finite]).exponent.double() - 1
    spacing = torch.exp2(exponent.clamp(min=math.log2(info.smallest_normal))) * info.eps
    worst = ((got[finite] - exact[finite]).abs() / spacing).max().item() if finite.any() else 0.0
    assert worst <= SCALED_ULP, f"an element is {worst} ulp from {coef!r} times what it was"
    beyond = exact.isinf()
    assert torch.equal(got[beyond], exact[beyond])
