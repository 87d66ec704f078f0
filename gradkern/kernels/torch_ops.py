"""Clipping and measuring with torch's own operations, for lists that no kernel supports.

These are tensor subclasses, dispatch modes, devices without a kernel, lists on several devices, and all
lists under ``GRADKERN_DISABLE=1``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor

from gradkern._util.warning import warn
from gradkern.kernels.extension import DISABLED, EXTENSION
from gradkern.kernels.installed import REBUILD
from gradkern.kernels.kinds import check_readable, check_writable, naming, naming_one_of, place
from gradkern.kernels.measured import Measured, decision_norm
from gradkern.kernels.shared_memory import each_once, overlapping, same_memory
from gradkern.kernels.torch_scale import coefficient, known_bool, scale_with_torch, widest


def _isolated() -> ModuleType:
    """A second copy of torch.nn.utils.clip_grad. Its functions look each other up in their module; in torch's
    own module they would find gradkern's functions after `gradkern.patch_torch`."""
    spec = importlib.util.find_spec("torch.nn.utils.clip_grad")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_torch = _isolated()
torch_clip_grad_value_ = _torch.clip_grad_value_
torch_get_total_norm = _torch._get_total_norm
torch_clip_grads_with_norm_ = _torch._clip_grads_with_norm_


@torch.no_grad()
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
    grads = each_once(held)
    if not grads:
        return _zero(parameters, held)
    with naming_one_of("clip_grad_norm_", "parameters", held, lambda g: torch.linalg.vector_norm(g)):
        total: Tensor = torch_get_total_norm(grads, norm_type, error_if_nonfinite, _foreach(grads, foreach))
    if max_norm == float("inf"):
        return total
    if known_bool(total.isinf()) is False:
        _scale(grads, max_norm, total, foreach)
    else:
        scale_with_torch(grads, factor_in_double(grads, max_norm, norm_type, total), in_double=True)
    return total


def factor_in_double(
    grads: Sequence[Tensor], max_norm: float | Tensor, norm_type: float, total: Tensor
) -> Tensor:
    """The factor to clip by, 0-d.

    If `total` overflowed to inf, the factor is computed from the norm relative to the largest magnitude,
    which every dtype can hold.
    """

    def rows(of: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.stack([of(magnitudes(g)).to(total.device) for g in grads])

    largest = rows(lambda x: x.amax()).amax()
    unit = torch.ones_like(largest) if norm_type == 0 else largest
    norms = rows(lambda x: vector_norm(x / unit.to(x.device), norm_type))
    norm = norms.sum() if norm_type == 0 else vector_norm(norms, norm_type)
    factor = (max_norm / (norm + 1e-6 / unit) / unit).clamp(max=1.0)
    usable = total.isinf() & largest.isfinite() & (factor >= 0)
    return torch.where(usable, factor, coefficient(total, max_norm))


def _scale(grads: Sequence[Tensor], max_norm: float, total: Tensor, foreach: bool | None) -> None:
    """Scale by ``max_norm / (total + 1e-6)`` where that is below 1. `grads` are each listed once."""
    if overlapping(grads):
        scale_with_torch(grads, coefficient(total, max_norm))
    else:
        holders = [SimpleNamespace(grad=grad) for grad in grads]
        torch_clip_grads_with_norm_(holders, max_norm, total, _foreach(grads, foreach))


def _foreach(grads: Sequence[Tensor], foreach: bool | None) -> bool | None:
    """torch's foreach operations have no rules for `torch.vmap`."""
    batched = foreach is None and any(torch._C._functorch.is_batchedtensor(g) for g in grads)
    return False if batched else foreach


def _zero(tensors: Sequence[Tensor], held: Sequence[Tensor | None]) -> Tensor:
    """The norm of an empty list."""
    device = home(tensors, [g for g in held if g is not None])
    return torch.zeros((), dtype=torch.float32, device=device)


@torch.no_grad()
def clip_in_graph(
    grads: Sequence[Tensor], max_norm: float | Tensor, norm_type: float, error_if_nonfinite: bool
) -> Tensor:
    """`clip_grad_norm_` while a graph is traced. Memory that gradients share is not noticed."""
    filled = [g for g in grads if g.numel()]
    if not filled:
        return _zero(grads, grads)
    total: Tensor = torch_get_total_norm(filled, norm_type, error_if_nonfinite)
    scale_in_graph(filled, factor_in_double(filled, max_norm, norm_type, total))
    return total


@torch.no_grad()
def scale_in_graph(grads: Sequence[Tensor], factor: Tensor) -> None:
    """Scale in place, in float64, while a graph is traced."""
    for grad in grads:
        wide = torch.complex128 if grad.is_complex() else widest(grad)
        grad.copy_(grad.to(wide) * factor.to(grad.device))


@torch.no_grad()
def clamp_in_graph(grads: Sequence[Tensor], limit: Tensor) -> None:
    """Clamp in place by a limit that is an input of a graph. A negative one leaves gradients unchanged."""
    for grad in grads:
        own = limit.to(grad.device).masked_fill(limit.to(grad.device) < 0, float("inf")).to(grad.dtype)
        grad.clamp_(-own, own)


def clip_grad_value_(parameters: Sequence[Tensor], clip_value: float, foreach: bool | None = None) -> None:
    warn_of_missing_kernels(parameters)
    check_writable("clip_grad_value_", [p.grad for p in parameters], lambda g: g.clamp_(-1.0, 1.0))
    grads = each_once([p.grad for p in parameters])
    if grads:  # torch's function raises without gradients
        torch_clip_grad_value_(parameters, clip_value, _foreach(grads, foreach))


def get_total_norm(
    tensors: Sequence[Tensor], norm_type: float, error_if_nonfinite: bool, foreach: bool | None = None
) -> Tensor:
    warn_of_missing_kernels(tensors)
    counted = each_once(tensors)
    if not counted:
        return _zero(tensors, tensors)
    with naming_one_of("get_total_norm", "tensors", tensors, lambda t: torch.linalg.vector_norm(t)):
        total: Tensor = torch_get_total_norm(
            counted, norm_type, error_if_nonfinite, _foreach(counted, foreach)
        )
    return total


@torch.no_grad()
def clip_grads_with_norm_(
    parameters: Sequence[Tensor], max_norm: float, total_norm: Tensor, foreach: bool | None = None
) -> None:
    """A negative `total_norm`, whose sign the host may not know, leaves the gradients unchanged."""
    warn_of_missing_kernels(parameters)
    held = [p.grad for p in parameters]
    grads = each_once(held)
    if max_norm == float("inf") or not grads:
        return
    check_writable("clip_grads_with_norm_", held, lambda g: g.mul_(1.0))
    total_norm = total_norm.reshape(())
    if total_norm.dtype.itemsize == 1:  # float8 cannot be compared
        total_norm = total_norm.float()
    if max_norm > 0:  # a negative norm becomes one with the factor 2, which torch does not apply
        total_norm = torch.where(total_norm < 0, max_norm / 2 - 1e-6, total_norm)
        _scale(grads, max_norm, total_norm, foreach)
    else:
        scale_with_torch(grads, coefficient(total_norm, max_norm))


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
    return power_norm(safe, ((x / safe) ** norm_type).sum(), norm_type)


def power_norm(reference: Tensor, powers: Tensor, norm_type: float) -> Tensor:
    """``reference * powers ** (1 / norm_type)``, as in csrc/core/norm.h; 0 where `reference` is 0.

    Near order 0 the power alone may be beyond the range of the format while the product is not.
    """
    root = powers ** (1 / norm_type)
    third = powers ** (1 / (3 * norm_type))
    usual = root.isfinite() & (root >= torch.finfo(root.dtype).tiny)
    norm = torch.where(usual, reference * root, reference * third * third * third)
    return torch.where(reference == 0, 0.0, norm)


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
    rows = _rows_of(grads, places, torch.zeros(0, dtype=wide, device=device))
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


def _rows_of(
    grads: Sequence[Tensor | None], places: Sequence[str], nothing: Tensor
) -> Callable[[Callable[[Tensor], Tensor], torch.dtype], Tensor]:
    """A function that applies another one to the magnitudes of every gradient: one row each.

    Args:
        places: what errors call the gradients.
        nothing: the magnitudes of a missing gradient. All are converted to its device and dtype.
    """
    values = [
        nothing if g is None else named_magnitudes(where, g).to(nothing.device, nothing.dtype)
        for where, g in zip(places, grads)
    ]

    def rows(of: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
        found = []
        for where, x in zip(places, values):
            with naming(where, x):
                found.append(of(x))
        return torch.stack(found).to(dtype) if found else nothing.to(dtype)

    return rows


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
