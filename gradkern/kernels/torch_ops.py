"""Clipping and measuring with torch's own operations, for lists that no kernel supports.

These are tensor subclasses, dispatch modes, devices without a kernel, lists on several devices, and all
lists under ``GRADKERN_DISABLE=1``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from gradkern._util.warning import warn
from gradkern.kernels.extension import DISABLED, EXTENSION, REBUILD
from gradkern.kernels.kinds import check_readable, check_writable, naming, naming_one_of, place
from gradkern.kernels.measured import Measured, decision_norm


def _isolated() -> ModuleType:
    """A second copy of torch.nn.utils.clip_grad. Its functions look each other up in their module; in torch's
    own module they would find gradkern's functions after `gradkern.patch_torch`."""
    spec = importlib.util.find_spec("torch.nn.utils.clip_grad")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_torch = _isolated()
torch_clip_grad_norm_ = _torch.clip_grad_norm_
torch_clip_grad_value_ = _torch.clip_grad_value_
torch_get_total_norm = _torch._get_total_norm
torch_clip_grads_with_norm_ = _torch._clip_grads_with_norm_


def clip_grad_norm_(
    parameters: Sequence[Tensor],
    max_norm: float,
    norm_type: float,
    error_if_nonfinite: bool,
    foreach: bool | None = None,
) -> Tensor:
    warn_of_missing_kernels(parameters)
    held = [p.grad for p in parameters]
    check_writable("clip_grad_norm_", held, lambda g: g.mul_(1.0))
    grads = [g for g in held if g is not None]
    with naming_one_of("clip_grad_norm_", "parameters", held, lambda g: torch.linalg.vector_norm(g)):
        total = torch_get_total_norm(grads, norm_type, error_if_nonfinite, foreach)
    if _is_inf(total):
        wide = measure(parameters, norm_type, False, 1.0, "clip_grad_norm_").deciding()
        if bool(wide.isfinite()):
            _scale_in_double(grads, max_norm / (wide + 1e-6))
            return total
    torch_clip_grads_with_norm_(parameters, max_norm, total, foreach)
    return total


def _is_inf(total: Tensor) -> bool:
    # A batched norm (torch.vmap) and a fake one have no value.
    has_value = type(total) is Tensor and not torch._C._functorch.is_batchedtensor(total)
    return has_value and not total.is_meta and bool(total.isinf())


def _scale_in_double(grads: Sequence[Tensor], factor: Tensor) -> None:
    """Scale by a factor that may be too small for float32."""
    for grad in distinct(grads):
        wide = torch.complex128 if grad.is_complex() else torch.float64
        grad.copy_(grad.to(wide) * factor.to(grad.device))


def clip_grad_value_(parameters: Sequence[Tensor], clip_value: float, foreach: bool | None = None) -> None:
    warn_of_missing_kernels(parameters)
    check_writable("clip_grad_value_", [p.grad for p in parameters], lambda g: g.clamp_(-1.0, 1.0))
    torch_clip_grad_value_(parameters, clip_value, foreach)


def get_total_norm(
    tensors: Sequence[Tensor], norm_type: float, error_if_nonfinite: bool, foreach: bool | None = None
) -> Tensor:
    warn_of_missing_kernels(tensors)
    with naming_one_of("get_total_norm", "tensors", tensors, lambda t: torch.linalg.vector_norm(t)):
        total: Tensor = torch_get_total_norm(tensors, norm_type, error_if_nonfinite, foreach)
    return total


def clip_grads_with_norm_(
    parameters: Sequence[Tensor], max_norm: float, total_norm: Tensor, foreach: bool | None = None
) -> None:
    """A negative `total_norm`, whose sign the host may not know, leaves the gradients unchanged."""
    warn_of_missing_kernels(parameters)
    if max_norm != float("inf"):
        check_writable("clip_grads_with_norm_", [p.grad for p in parameters], lambda g: g.mul_(1.0))
        total_norm = total_norm.reshape(()) if total_norm.numel() == 1 else total_norm
        negative = total_norm < 0
        limit = torch.where(negative, 1.0, max_norm)
        torch_clip_grads_with_norm_(parameters, limit, torch.where(negative, 0.0, total_norm), foreach)


def same_memory(tensor: Tensor) -> object:
    """A key that is equal for entries that are one gradient: the same tensor or the same view of memory.

    Entries with equal keys count once in a norm. All other entries count in full, even if they overlap. In
    either case each memory location is scaled once.
    """
    plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
    if not plain or tensor.is_nested or torch._C._functorch.is_batchedtensor(tensor):
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def overlapping(tensors: Sequence[Tensor | None]) -> set[int]:
    """Positions of dense tensors that share some memory with another one without being the same view."""
    spans = []
    for position, t in enumerate(tensors):
        if t is not None and t.numel() and not isinstance(key := same_memory(t), int):
            reach = sum((n - 1) * s for n, s in zip(t.shape, t.stride())) + 1
            spans.append(
                (str(t.device), t.data_ptr(), t.data_ptr() + reach * t.element_size(), key, position)
            )
    found: set[int] = set()
    widest_span = None
    for span in sorted(spans, key=lambda s: s[:3]):
        if widest_span is None or span[0] != widest_span[0] or span[1] >= widest_span[2]:
            widest_span = span
            continue
        if span[3] != widest_span[3]:
            found |= {span[4], widest_span[4]}
        if span[2] > widest_span[2]:
            widest_span = span
    return found


def unexpanded(tensor: Tensor) -> Tensor:
    """A view that has each element of an expanded tensor once, which in-place operations accept."""
    if tensor.layout is torch.strided and not tensor.is_nested:
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride())):
            if size > 1 and stride == 0:
                tensor = tensor.narrow(dim, 0, 1)
    return tensor


def distinct(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """The tensors that are not None and not empty, each gradient once."""
    found: dict[object, Tensor] = {}
    for tensor in tensors:
        if tensor is not None and tensor.numel():
            found.setdefault(same_memory(tensor), tensor)
    return list(found.values())


def warn_of_missing_kernels(tensors: Sequence[Tensor]) -> None:
    """Warn once if gradients on a GPU use torch's operations because gradkern was built without CUDA."""
    global _warned
    if _warned or DISABLED or EXTENSION is None or not any(_lacks_kernels(t) for t in tensors):
        return
    _warned = True
    warn(
        "gradkern was built without CUDA kernels: gradients on a GPU use torch's own operations, with their "
        f"speed and precision. Build with nvcc: GRADKERN_CUDA=1 {REBUILD}"
    )


_warned = False


def _lacks_kernels(tensor: Tensor) -> bool:
    # As in torch, an entry may be any object with a `.grad`.
    carrier = tensor if isinstance(tensor, Tensor) else tensor.grad
    return (
        carrier is not None
        and carrier.is_cuda
        and EXTENSION is not None
        and not EXTENSION.build_info()["cuda"]
    )


def widest(tensor: Tensor) -> torch.dtype:
    """The dtype that norms are computed in: float64, or float32 on devices without it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def magnitudes(grad: Tensor) -> Tensor:
    """The absolute value of every element, dense, in the widest dtype. Of a sparse gradient, of the stored
    elements."""
    dense = grad.detach()
    if dense.layout == torch.sparse_coo:
        dense = dense.coalesce().values()
    elif dense.layout != torch.strided:
        dense = dense.values()
    if dense.dtype.itemsize == 1:  # not every float8 type has abs
        dense = dense.float()
    if dense.is_complex():
        dense = dense.to(torch.complex128 if widest(dense) is torch.float64 else torch.complex64)
    return dense.abs().to(widest(dense))


def vector_norm(x: Tensor, norm_type: float) -> Tensor:
    """The norm of the non-negative `x`, without overflow or underflow; 0 if `x` is empty."""
    if x.numel() == 0:
        return x.new_zeros(())
    if norm_type == 0:
        return (x != 0).sum().to(x.dtype)
    if abs(norm_type) == float("inf"):
        return x.amax() if norm_type > 0 else x.amin()
    reference = x.amax() if norm_type > 0 else x.amin()
    safe = torch.where((reference > 0) & reference.isfinite(), reference, torch.ones_like(reference))
    # Not linalg.vector_norm: it adds element by element, whereas sum() adds pairwise.
    return ((x / safe) ** norm_type).sum() ** (1 / norm_type) * safe


def named_magnitudes(where: str, grad: Tensor) -> Tensor:
    """`magnitudes`, with errors that name the gradient."""
    check_readable(where, grad)
    with naming(where, grad):
        return magnitudes(grad)


def measure(
    params: Sequence[Tensor],
    norm_type: float,
    count_zeros: bool,
    inv_scale: float,
    operation: str,
    names: Sequence[str] | None = None,
) -> Measured:
    """`gradkern._C.measure` with torch's operations, one tensor at a time."""
    warn_of_missing_kernels(params)
    grads = [p.grad for p in params]
    present = [g for g in grads if g is not None]
    device = home(params, present)
    wide = torch.float32 if device.type == "mps" else torch.float64
    double = any(g.dtype in (torch.float64, torch.complex128) for g in present)
    report = torch.float64 if double and wide is torch.float64 else torch.float32
    what = "parameters" if names is None else "params"
    places = [place(operation, what, i, names) for i in range(len(grads))]
    nothing = torch.zeros(0, dtype=wide, device=device)
    values = [
        nothing if g is None else named_magnitudes(where, g).to(device, wide)
        for where, g in zip(places, grads)
    ]

    def rows(of: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
        found = []
        for where, x in zip(places, values):
            with naming(where, x):
                found.append(of(x))
        return torch.stack(found).to(dtype) if found else torch.zeros(0, dtype=dtype, device=device)

    factor = abs(inv_scale)
    norm_factor = 1.0 if norm_type == 0 else factor  # order 0 counts elements
    norm = rows(lambda x: vector_norm(x, norm_type), wide)
    total = _total(norm, grads, norm_type) * norm_factor
    rounded = total.to(report)
    return Measured(
        norm=(norm * norm_factor).to(report),
        l2_norm=(rows(lambda x: vector_norm(x, 2.0), wide) * factor).to(report),
        max_abs=(rows(lambda x: vector_norm(x, float("inf")), wide) * factor).to(report),
        nonfinite=rows(lambda x: (~x.isfinite()).sum(), torch.int64),
        zeros=rows(lambda x: (x == 0).sum(), torch.int64) if count_zeros else None,
        total_norm=rounded,
        decision_norm=decision_norm(total, rounded),
        has_grad=tuple(g is not None for g in grads),
    )


def home(params: Sequence[Tensor], present: Sequence[Tensor]) -> torch.device:
    """The device of results: that of the gradients, or of the parameters if there are no gradients."""
    first = next(iter(present), None)
    if first is None:
        first = next(iter(params), None)
    return torch.device("cpu") if first is None else first.device


def _total(norm: Tensor, grads: Sequence[Tensor | None], norm_type: float) -> Tensor:
    counted = {
        same_memory(g): row for row, g in reversed(list(enumerate(grads))) if g is not None and g.numel()
    }
    rows = norm[sorted(counted.values())]
    return rows.sum() if norm_type == 0 else vector_norm(rows, norm_type)
