"""The drop-in functions, which report each clip to `observing.observer`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradkern.clipping import observing, route
from gradkern.clipping.measure import measure
from gradkern.clipping.observing import Report
from gradkern.kernels.dtensors import is_distributed
from gradkern.kernels.torch_scale import coefficient
from gradkern.params.stats import GradStats

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Ranks = tuple["ProcessGroup | None", "ProcessGroup | None"]
"""`process_group` and `pp_group`."""


def run(
    operation: str,
    params: Sequence[Tensor],
    arguments: tuple[Any, ...],
    foreach: bool | None = None,
    ranks: Ranks | None = None,
) -> Any:
    """`route.run` of a function that clips. An observed `clip_grad_norm_` reads the gradients once; the other
    two read them once more."""
    report = None if observing.observer is None else observing.observed(params)
    if report is None:
        return route.run(operation, params, arguments, foreach, ranks)
    if operation == "clip_grad_norm_":
        return _clip_norm(report, params, arguments, foreach, ranks)
    stats = measure(params)
    done = route.run(operation, params, arguments, foreach)
    if operation == "clip_grad_value_":
        report(dataclasses.replace(stats, applied=True))
    else:
        max_norm, given = arguments
        total = given.detach().reshape(()).to(stats.total_norm.device, torch.float64)
        report(_clipped(stats, max_norm, total), total)
    return done


def _clip_norm(
    report: Report,
    params: Sequence[Tensor],
    arguments: tuple[Any, ...],
    foreach: bool | None,
    ranks: Ranks | None,
) -> Tensor:
    max_norm, norm_type, error_if_nonfinite = arguments
    process_group, pp_group = ranks or (None, None)
    stats = measure(params, norm_type=norm_type, process_group=process_group, pp_group=pp_group)
    if error_if_nonfinite and not math.isfinite(float(stats.total_norm)):
        total: Tensor = route.run("clip_grad_norm_", params, arguments, foreach, ranks)  # raises
        return total
    decisive = stats.deciding()
    route.misuse.check("clip_grad_norm_", params)  # under this name, not under that of the next call
    route.run("clip_grads_with_norm_", params, (max_norm, decisive), foreach)
    report(_clipped(stats, max_norm, decisive))
    return _as_returned(params, stats.total_norm, ranks is not None)


def _clipped(stats: GradStats, max_norm: float, decisive: Tensor) -> GradStats:
    coef = torch.ones_like(decisive) if max_norm == math.inf else coefficient(decisive, max_norm)
    return dataclasses.replace(
        stats, clip_coef=coef.to(stats.total_norm.dtype), applied=True, threshold=max_norm
    )


def _as_returned(params: Sequence[Tensor], total: Tensor, grouped: bool) -> Tensor:
    """A replicated DTensor where `gradkern.clip_grad_norm_` returns one."""
    if grouped or not is_distributed(params):
        return total
    from torch.distributed.tensor import DTensor, Replicate

    grads = [p.grad for p in params if p.grad is not None]
    meshes = {grad.device_mesh if isinstance(grad, DTensor) else None for grad in grads}
    mesh = meshes.pop() if len(meshes) == 1 else None
    if mesh is None:
        return total
    return DTensor.from_local(total, mesh, [Replicate()] * mesh.ndim, run_check=False)
