"""Gradients on the device, and float64 references on the host. Imported by the tests beside it."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.complex64,
    torch.complex128,
)
REALS = DTYPES[:4]
ORDERS = (2.0, 1.0, math.inf, -math.inf, 0.0, 3.0, 0.5)
#: Around the sizes at which something changes: a warp, a 16-byte vector, a chunk of 16 KiB.
SIZES = (0, 1, 3, 31, 32, 33, 1009, 4095, 4096, 4097, 8193, 100003)


def is_wide(dtype: torch.dtype) -> bool:
    return dtype in (torch.float64, torch.complex128)


def random(numel: int, dtype: torch.dtype, scale: float = 1.0, offset: int = 0) -> Tensor:
    """`numel` values on the device, `offset` elements into their storage."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    values = torch.randn(numel, dtype=wide) * scale
    storage = torch.empty(numel + offset, dtype=dtype, device="cuda")
    view = storage[offset:]
    view.copy_(values.to(dtype))
    return view


def parameter(grad: Tensor | None) -> torch.nn.Parameter:
    like = grad if grad is not None else torch.zeros(1, device="cuda")
    p = torch.nn.Parameter(torch.zeros_like(like))
    p.grad = grad
    return p


def magnitudes(tensors: list[Tensor]) -> np.ndarray:
    """|x| of all elements in extended precision."""
    parts = []
    for t in tensors:
        x = t.detach().reshape(-1).cpu()
        if x.is_complex():
            x = x.to(torch.complex128)
            re, im = x.real.numpy().astype(np.longdouble), x.imag.numpy().astype(np.longdouble)
            parts.append(np.sqrt(re * re + im * im))
        else:
            parts.append(np.abs(x.double().numpy().astype(np.longdouble)))
    return np.concatenate(parts) if parts else np.zeros(0, np.longdouble)


def reference_norm(tensors: list[Tensor], p: float) -> float:
    m = magnitudes(tensors)
    if m.size == 0:
        return 0.0
    if p == 0:
        return float(np.count_nonzero(m))
    if p == math.inf:
        return float(m.max())
    if p == -math.inf:
        return float(m.min())
    top = m.max()
    if top == 0 or not np.isfinite(top):
        return float(top)
    return float(top * np.power(np.sum(np.power(m / top, p)), np.longdouble(1) / p))


def assert_norm(got: Tensor, want: float, p: float = 2.0, total: bool = False) -> None:
    """One unit in the last place for a tensor, two for a total; 1e-14 in float64 (general p: 1e-12)."""
    value = float(got)
    if math.isnan(want):
        assert math.isnan(value)
        return
    if got.dtype == torch.float64:
        general = p not in (2.0, 1.0, 0.0) and math.isfinite(p)
        tolerance = (1e-12 if general else 1e-14) * abs(want) + 5e-324
    else:
        if np.isinf(np.float32(want)):
            assert value == float(np.float32(want))
            return
        tolerance = (2 if total else 1) * float(np.spacing(np.float32(want)))
    assert abs(value - want) <= tolerance, f"got {value!r}, want {want!r}"


def bits(t: Tensor) -> Tensor:
    """The bytes of a tensor, on the host."""
    return t.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
