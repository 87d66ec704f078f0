"""The drop-in functions for DTensors and for process groups."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from gradkern.distributed.measure import Distributed
from gradkern.distributed.placements import written_shards
from gradkern.kernels.measured import decision_norm
from gradkern.kernels.scale import clamp_, is_one, scale_
from gradkern.kernels.torch_scale import coefficient


@torch.no_grad()
def clip_grad_norm_(
    params: Sequence[Tensor],
    max_norm: float,
    norm_type: float,
    error_if_nonfinite: bool,
    process_group: dist.ProcessGroup | None = None,
    pp_group: dist.ProcessGroup | None = None,
) -> Tensor:
    grads = [p.grad for p in params]
    together = Distributed(params, grads, process_group=process_group, pp_group=pp_group)
    whole = together.total(norm_type)
    total = whole.to(together.report)
    if error_if_nonfinite:
        _raise_if_nonfinite(together, total, norm_type, "parameters")
    _scale_by_norm(grads, max_norm, decision_norm(whole, total), together.held)
    return together.as_returned(total)


@torch.no_grad()
def get_total_norm(
    tensors: Sequence[Tensor],
    norm_type: float,
    error_if_nonfinite: bool,
    process_group: dist.ProcessGroup | None = None,
    pp_group: dist.ProcessGroup | None = None,
) -> Tensor:
    together = Distributed(
        tensors, tensors, process_group=process_group, pp_group=pp_group, operation="get_total_norm"
    )
    total = together.total(norm_type).to(together.report)
    if error_if_nonfinite:
        _raise_if_nonfinite(together, total, norm_type, "tensors")
    return together.as_returned(total)


@torch.no_grad()
def clip_grads_with_norm_(params: Sequence[Tensor], max_norm: float, total_norm: Tensor) -> None:
    """No collective."""
    _scale_by_norm([p.grad for p in params], max_norm, total_norm)


@torch.no_grad()
def clip_grad_value_(params: Sequence[Tensor], clip_value: float) -> None:
    """Limit the elements of the local shards. No collective.

    Raises:
        ValueError: a gradient has a Partial placement: its terms cannot be limited one by one.
    """
    grads = [p.grad for p in params]
    for index, grad in enumerate(grads):
        if isinstance(grad, DTensor) and any(p.is_partial() for p in grad.placements):
            raise ValueError(
                f"[clip_grad_value_] parameters[{index}]: expected a reduced gradient, got placements "
                f"{tuple(grad.placements)}; call .redistribute() on it first"
            )
    clamp_(written_shards(grads), clip_value)


def _scale_by_norm(
    grads: Sequence[Tensor | None],
    max_norm: float,
    total: Tensor,
    held: Sequence[Tensor | None] | None = None,
) -> None:
    if max_norm == math.inf:
        return
    factor = coefficient(total, max_norm)
    if not is_one(factor):
        scale_(grads, written_shards(grads) if held is None else held, factor)


def _raise_if_nonfinite(together: Distributed, total: Tensor, norm_type: float, what: str) -> None:
    if math.isfinite(float(total)):
        return
    found = together.nonfinite_parameters()
    listed = ", ".join(f"{what}[{i}] ({count} elements)" for i, count in found[:8])
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    where = f"on this rank: {listed}{more}" if found else "none on this rank"
    raise RuntimeError(
        f"[{together.operation}] The total norm of order {norm_type} for gradients from `parameters` is "
        f"non-finite, so it cannot be clipped. Non-finite {where}. Gradients are unchanged; to "
        "scale them by the non-finite norm anyway, set `error_if_nonfinite=False`."
    )
