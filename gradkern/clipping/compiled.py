"""The drop-in functions under torch.compile and export, by the operators `torch.ops.gradkern.*`.

The extension registers the operators with their mutations. Here are their fake implementations (shapes and
dtypes without data) and the bodies of the drop-in functions that are traced. Eager calls use pybind11
instead, which has less overhead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradkern.kernels import torch_ops
from gradkern.kernels.backend import C  # registers the operators as well
from gradkern.kernels.torch_scale import coefficient
from gradkern.params.row_groups import norm_of_norms


def _device_types() -> tuple[str, ...]:
    """The device types that the operators support."""
    info = C.build_info()
    return () if not info else ("cpu", "cuda") if info["cuda"] else ("cpu",)


_DEVICE_TYPES = _device_types()


def _fake(name: str) -> Any:
    """Register a fake implementation, if the operators exist."""
    return torch.library.register_fake(f"gradkern::{name}") if _DEVICE_TYPES else (lambda function: function)


def _report_dtype(grads: Sequence[Tensor]) -> torch.dtype:
    wide = any(g.dtype in (torch.float64, torch.complex128) for g in grads)
    return torch.float64 if wide else torch.float32


def _scalar(grads: Sequence[Tensor], for_decision: bool) -> Tensor:
    device = grads[0].device if grads else torch.device("cpu")
    dtype = torch.float64 if for_decision else _report_dtype(grads)
    return torch.empty((), dtype=dtype, device=device)


@_fake("total_norm")
def _(grads: Sequence[Tensor], norm_type: float, for_decision: bool = False) -> Tensor:
    return _scalar(grads, for_decision)


@_fake("clip_")
def _(
    grads: Sequence[Tensor],
    max_norm: float,
    norm_type: float,
    error_if_nonfinite: bool,
    for_decision: bool = False,
) -> Tensor:
    return _scalar(grads, for_decision)


@_fake("scale_")
def _(grads: Sequence[Tensor], factor: Tensor) -> None:
    return None


@_fake("clip_value_")
def _(grads: Sequence[Tensor], clip_value: float) -> None:
    return None


def leaves_graph(tensors: Sequence[Tensor], parameters: bool = True) -> bool:
    """Whether a list is clipped outside the graph: DTensors, and sparse gradients, which cannot be traced."""
    listed = [*tensors, *(p.grad for p in tensors if p.grad is not None)] if parameters else tensors
    if any(t.layout is not torch.strided for t in listed):
        return True
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor  # the compiler has imported it already

    return any(isinstance(t, DTensor) for t in listed)


def run(
    eager: Callable[..., Any],
    operation: str,
    tensors: Sequence[Tensor],
    arguments: tuple[Any, ...],
    foreach: bool | None,
    groups: Any,
) -> Any:
    """Trace one of the drop-in functions, or call `eager` in a graph break if it cannot be traced."""
    further = [a for a in arguments if isinstance(a, Tensor)]
    parameters = operation != "get_total_norm"
    if groups is not None or leaves_graph(tensors, parameters) or leaves_graph(further, parameters=False):
        from gradkern.clipping.graph_break import outside_the_graph  # the compiler has been imported already

        return outside_the_graph(eager, operation, tensors, arguments, foreach, groups)
    return _TRACED[operation](tensors, *arguments)


def gradients(operation: str, parameters: Sequence[Tensor]) -> list[Tensor]:
    grads = [p.grad for p in parameters if p.grad is not None]
    candidates = [p for p in parameters if isinstance(p, torch.nn.Parameter) or p.requires_grad]
    if parameters and not grads and not candidates:
        raise ValueError(
            f"[{operation}] parameters: none of the {len(parameters)} tensors requires grad or has a .grad; "
            "pass the parameters here, or the gradients to get_total_norm"
        )
    return grads


def _has_kernels(grads: Sequence[Tensor]) -> bool:
    """Whether the operators support all of these devices; torch's operations are used for others."""
    return all(g.device.type in _DEVICE_TYPES for g in grads)


def _scale(grads: Sequence[Tensor], max_norm: Any, total: Tensor) -> None:
    """Scale with tensor arithmetic, so that a limit that changes between calls or is on a device is an input
    of the graph, not a constant."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for grad in grads:
        by_device.setdefault(grad.device, []).append(grad)
    for device, listed in by_device.items():
        limit = max_norm.to(device) if isinstance(max_norm, Tensor) else max_norm
        torch.ops.gradkern.scale_(listed, coefficient(total.to(device).double(), limit))


def _zero(parameters: Sequence[Tensor]) -> Tensor:
    """The norm of an empty list."""
    return torch.zeros((), dtype=torch.float32, device=torch_ops.home(parameters, ()))


def get_total_norm(tensors: Sequence[Tensor], norm_type: float, error_if_nonfinite: bool) -> Tensor:
    if not tensors:
        return _zero(())
    if not _has_kernels(tensors):
        filled = [t for t in tensors if t.numel()]  # torch has no norm of order inf for empty tensors
        if not filled:
            return _zero(tensors)
        return torch_ops.torch_get_total_norm(filled, norm_type, error_if_nonfinite)
    if error_if_nonfinite:  # the operator checks; with max_norm=inf it never writes
        return torch.ops.gradkern.clip_(list(tensors), float("inf"), norm_type, True)
    return torch.ops.gradkern.total_norm(list(tensors), norm_type)


def clip_grad_norm_(
    parameters: Sequence[Tensor], max_norm: Any, norm_type: float, error_if_nonfinite: bool
) -> Tensor:
    grads = gradients("clip_grad_norm_", parameters)
    if not grads:
        return _zero(parameters)
    total = _clip(parameters, grads, max_norm, norm_type, error_if_nonfinite)
    return total.to(_report_dtype(grads))


def _clip(
    parameters: Sequence[Tensor],
    grads: Sequence[Tensor],
    max_norm: Any,
    norm_type: float,
    error_if_nonfinite: bool,
) -> Tensor:
    """Returns the norm that was decided on."""
    if not _has_kernels(grads):
        return torch_ops.clip_in_graph(grads, max_norm, norm_type, error_if_nonfinite)
    if error_if_nonfinite:  # an empty tensor for each missing gradient, as messages give positions
        listed = [torch.empty(0, device=p.device) if p.grad is None else p.grad for p in parameters]
        total = torch.ops.gradkern.clip_(listed, float("inf"), norm_type, True, True)
    else:
        total = torch.ops.gradkern.total_norm(grads, norm_type, True)
    _scale(grads, max_norm, total)
    return total


def clip_groups(
    parameters: Sequence[Tensor],
    groups: Sequence[Sequence[int]],
    limits: Sequence[Any],
    norm_type: float,
    error_if_nonfinite: bool,
) -> Tensor:
    """`clip_grad_norm_` of groups, each given by its positions, by a limit each. Each is read and scaled by
    itself. Returns the norm of everything."""
    grads = gradients("clip_grad_norm_", parameters)
    if not grads:
        return _zero(parameters)
    report = _report_dtype(grads)
    if error_if_nonfinite:  # before anything is scaled
        _clip(parameters, grads, math.inf, norm_type, True)
    # Norms of float32 gradients are rounded to it, which is too coarse for a total in float64.
    total = get_total_norm(grads, norm_type, False) if len({g.dtype for g in grads}) > 1 else None
    norms = []
    for positions, limit in zip(groups, limits):
        own = [parameters[i] for i in positions if parameters[i].grad is not None]
        if own:
            norms.append(_clip(own, [p.grad for p in own if p.grad is not None], limit, norm_type, False))
    if total is None:
        row = torch.stack([norm.to(norms[0].device, torch.float64) for norm in norms])
        total = norm_of_norms(row[None], norm_type)[0]
    return total.to(report)


def clip_grads_with_norm_(parameters: Sequence[Tensor], max_norm: Any, total_norm: Tensor) -> None:
    grads = gradients("clip_grads_with_norm_", parameters)
    if not _has_kernels(grads):
        torch_ops.scale_in_graph(grads, coefficient(total_norm, max_norm))
    elif grads:
        _scale(grads, max_norm, total_norm)


def clip_grad_value_(parameters: Sequence[Tensor], clip_value: Any) -> None:
    grads = gradients("clip_grad_value_", parameters)
    if not grads:
        return
    if isinstance(clip_value, Tensor):
        torch_ops.clamp_in_graph(grads, clip_value)
    elif not _has_kernels(grads):
        torch_ops.torch_clip_grad_value_(parameters, clip_value)
    else:
        torch.ops.gradkern.clip_value_(grads, clip_value)


_TRACED: dict[str, Callable[..., Any]] = {
    "clip_grad_norm_": clip_grad_norm_,
    "get_total_norm": get_total_norm,
    "clip_grads_with_norm_": clip_grads_with_norm_,
    "clip_grad_value_": clip_grad_value_,
}
