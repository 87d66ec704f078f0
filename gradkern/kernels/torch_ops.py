"""torch's own operations, for what no kernel of ours takes.

Tensor subclasses, dispatch modes, devices without a kernel, lists over several devices, and
everything under `GRADKERN_DISABLE=1`. The functions of `torch.nn.utils` are captured here at import,
so that replacing them there (`gradkern.patch_torch`) does not lead back to gradkern.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad as _torch

from gradkern._util.warning import warn
from gradkern.kernels.extension import DISABLED, REBUILD, C

torch_clip_grad_norm_ = _torch.clip_grad_norm_
torch_clip_grad_value_ = _torch.clip_grad_value_
torch_get_total_norm = _torch._get_total_norm
torch_clip_grads_with_norm_ = _torch._clip_grads_with_norm_


def clip_grad_norm_(parameters: Sequence[Tensor], *arguments: Any) -> Tensor:
    warn_of_missing_kernels(parameters)
    return torch_clip_grad_norm_(parameters, *arguments)


def clip_grad_value_(parameters: Sequence[Tensor], *arguments: Any) -> None:
    warn_of_missing_kernels(parameters)
    torch_clip_grad_value_(parameters, *arguments)


def get_total_norm(tensors: Sequence[Tensor], *arguments: Any) -> Tensor:
    warn_of_missing_kernels(tensors)
    return torch_get_total_norm(tensors, *arguments)


def clip_grads_with_norm_(parameters: Sequence[Tensor], *arguments: Any) -> None:
    warn_of_missing_kernels(parameters)
    torch_clip_grads_with_norm_(parameters, *arguments)


def warn_of_missing_kernels(tensors: Sequence[Tensor]) -> None:
    """Say once what rebuilds gradkern, where a GPU's gradients go to torch for want of kernels."""
    global _warned
    if _warned or DISABLED or not any(_lacks_kernels(t) for t in tensors):
        return
    _warned = True
    warn(
        "gradkern was built without CUDA kernels: gradients on a GPU go to torch's own operations, at their "
        f"speed and precision. Build with nvcc: GRADKERN_CUDA=1 {REBUILD}"
    )


_warned = False


def _lacks_kernels(tensor: Tensor) -> bool:
    # As with torch, an entry may be anything that has a gradient.
    carrier = tensor if isinstance(tensor, Tensor) else tensor.grad
    return carrier is not None and carrier.is_cuda and not C.build_info()["cuda"]


def widest(tensor: Tensor) -> torch.dtype:
    """The type norms are computed in: float64 wherever the device has it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def magnitudes(grad: Tensor) -> Tensor:
    """|g| of every element, dense, in the widest type."""
    dense = grad.detach()
    if dense.layout == torch.sparse_coo:
        dense = dense.coalesce().values()
    elif dense.layout != torch.strided:
        dense = dense.values()
    if dense.is_complex():
        dense = dense.to(torch.complex128 if widest(dense) is torch.float64 else torch.complex64)
    return dense.abs().to(widest(dense))


def vector_norm(x: Tensor, norm_type: float) -> Tensor:
    """The norm of non-negative `x`, without overflow or underflow inside; of nothing it is 0."""
    if x.numel() == 0:
        return x.new_zeros(())
    if norm_type == 0:
        return (x != 0).sum().to(x.dtype)
    if abs(norm_type) == float("inf"):
        return x.amax() if norm_type > 0 else x.amin()
    reference = x.amax() if norm_type > 0 else x.amin()
    safe = torch.where((reference > 0) & reference.isfinite(), reference, torch.ones_like(reference))
    # Not linalg.vector_norm: it adds up one after the other, sum() in cascades.
    return ((x / safe) ** norm_type).sum() ** (1 / norm_type) * safe


def measure(
    params: Sequence[Tensor], norm_type: float, count_zeros: bool, inv_scale: float
) -> dict[str, Any]:
    """What `_C.measure` returns, from torch's operations, one tensor at a time."""
    warn_of_missing_kernels(params)
    grads = [p.grad for p in params]
    present = [g for g in grads if g is not None]
    double = any(g.dtype in (torch.float64, torch.complex128) for g in present)
    device = present[0].device if present else torch.device("cpu")
    wide = widest(present[0]) if present else torch.float64
    report = torch.float64 if double and wide is torch.float64 else torch.float32

    columns: dict[str, list[Tensor]] = {k: [] for k in ("norm", "l2_norm", "max_abs", "nonfinite", "zeros")}
    seen: set[int] = set()
    for grad in grads:
        x = torch.zeros(0, dtype=wide, device=device) if grad is None else magnitudes(grad).to(device, wide)
        columns["norm"].append(vector_norm(x, norm_type))
        columns["l2_norm"].append(vector_norm(x, 2.0))
        columns["max_abs"].append(vector_norm(x, float("inf")))
        columns["nonfinite"].append((~x.isfinite()).sum())
        columns["zeros"].append((x == 0).sum())
    counted = []
    for row, grad in enumerate(grads):
        if grad is not None and grad.numel() and id(grad) not in seen:
            seen.add(id(grad))
            counted.append(columns["norm"][row])
    total = (
        vector_norm(torch.stack(counted), norm_type)
        if counted and norm_type != 0
        else (torch.stack(counted).sum() if counted else torch.zeros((), dtype=wide, device=device))
    )

    def stacked(name: str, dtype: torch.dtype) -> Tensor:
        rows = columns[name]
        return torch.stack(rows).to(dtype) if rows else torch.zeros(0, dtype=dtype, device=device)

    factor = abs(inv_scale)
    norm_factor = 1.0 if norm_type == 0 else factor  # a count of non-zeros stays what it is
    factors = {"norm": norm_factor, "l2_norm": factor, "max_abs": factor}
    return {
        **{k: (stacked(k, wide) * f).to(report) for k, f in factors.items()},
        "nonfinite": stacked("nonfinite", torch.int64),
        "zeros": stacked("zeros", torch.int64) if count_zeros else None,
        "total_norm": (total * norm_factor).to(report),
        "has_grad": [g is not None for g in grads],
    }
