"""Replacements of torch's clipping functions that also report each clip to the attached monitors.

They accept torch's arguments and torchtitan's ``pp_mesh=`` and ``ep_enabled=``.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from gradkern.clipping import functional, param_groups, route
from gradkern.clipping.measure import measure
from gradkern.kernels.dtensors import is_distributed
from gradkern.kernels.torch_scale import coefficient
from gradkern.monitor import GradMonitor
from gradkern.params.arguments import as_limit, as_list
from gradkern.params.names import first_rows
from gradkern.params.stats import GradStats

Parameters = Tensor | Iterable[Tensor]


class _Attached:
    """A monitor and the ids of its parameters."""

    def __init__(self, monitor: GradMonitor, when: Callable[[], bool] | None) -> None:
        self.monitor, self.when = monitor, when
        self._identities: tuple[int, ...] = ()
        self._members: frozenset[int] = frozenset()

    def members(self) -> frozenset[int]:
        identities = self.monitor.identities()
        if identities is not self._identities:
            self._identities, self._members = identities, frozenset(identities)
        return self._members


_attached: list[_Attached] = []
_lock = threading.Lock()
_open_for: Callable[[Sequence[Tensor]], GradMonitor] | None = None
#: Whether one of these functions was called in this process, outside of a compiled graph.
called = False


def attach(monitor: GradMonitor, when: Callable[[], bool] | None = None) -> None:
    """Report the clips of a monitor's parameters to it until it is closed or detached. Idempotent."""
    if not isinstance(monitor, GradMonitor):
        raise TypeError(f"[patch_torch] monitor: expected a GradMonitor, got {type(monitor).__name__}")
    with _lock:
        _attached[:] = _others(monitor)
        _attached.append(_Attached(monitor, when))


def detach(monitor: GradMonitor) -> None:
    """Stop reporting to a monitor."""
    with _lock:
        _attached[:] = _others(monitor)


def _others(monitor: GradMonitor) -> list[_Attached]:
    return [entry for entry in _attached if entry.monitor is not monitor and entry.monitor.is_open]


def detach_all() -> None:
    """Stop reporting to all monitors."""
    with _lock:
        _attached.clear()
        on_unknown(None)


def on_unknown(open_for: Callable[[Sequence[Tensor]], GradMonitor] | None) -> None:
    """Call `open_for` for a new monitor when parameters are clipped that no attached monitor has."""
    global _open_for
    _open_for = open_for


def is_attached(monitor: GradMonitor) -> bool:
    """Whether the clips of a monitor's parameters are reported to it."""
    return any(entry.monitor is monitor for entry in _attached)


def clip_grad_norm_(
    parameters: Parameters | param_groups.ParamGroups,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    pp_mesh: Any = None,
    ep_enabled: bool = False,
    **groups: Any,
) -> Tensor:
    """`gradkern.clip_grad_norm_`, recorded by the attached monitors of these parameters.

    Args:
        pp_mesh: torchtitan's mesh of pipeline stages; its group becomes `pp_group`.
        ep_enabled: ignored. torchtitan passes it, but the parameters of experts are DTensors anyway.
    """
    if pp_mesh is not None:
        groups.setdefault("pp_group", pp_mesh.get_group())
    if param_groups.are_param_groups(parameters):
        return _clip_param_groups(parameters, max_norm, norm_type, error_if_nonfinite, **groups)
    params = as_list("clip_grad_norm_", cast(Parameters, parameters))
    owners = _owners(params)
    if not owners:
        return functional.clip_grad_norm_(params, max_norm, norm_type, error_if_nonfinite, foreach, **groups)
    max_norm = as_limit("clip_grad_norm_", "max_norm", max_norm)
    stats = measure(params, norm_type=norm_type, **groups)
    if error_if_nonfinite and not math.isfinite(float(stats.total_norm)):
        return functional.clip_grad_norm_(params, max_norm, norm_type, True, foreach, **groups)  # raises
    decisive = stats.deciding()
    route.misuse.check("clip_grad_norm_", params)  # under this name, not under that of the next call
    functional.clip_grads_with_norm_(params, max_norm, decisive, foreach)
    _hand_on(owners, params, _clipped(stats, max_norm, decisive))
    return _as_returned(params, stats.total_norm, bool(groups))


def _clip_param_groups(groups: param_groups.ParamGroups, *arguments: Any, **ranks: Any) -> Tensor:
    """The form that torch does not have. Recorded by one more read, since several limits may apply."""
    listed = param_groups.with_lists(groups)
    params = [param for group in listed for param in group["params"]]
    owners = _owners(params)
    stats = measure(params) if owners else None
    total = functional.clip_grad_norm_(listed, *arguments, **ranks)
    if stats is not None:
        _hand_on(owners, params, stats)
    return total


def clip_grads_with_norm_(
    parameters: Parameters, max_norm: float, total_norm: Tensor | float, foreach: bool | None = None
) -> None:
    """`gradkern.clip_grads_with_norm_`, recorded by the attached monitors of these parameters."""
    params = as_list("clip_grads_with_norm_", parameters)
    owners = _owners(params)
    stats = measure(params) if owners else None
    functional.clip_grads_with_norm_(params, max_norm, total_norm, foreach)
    if stats is not None:
        whole = total_norm.full_tensor() if hasattr(total_norm, "full_tensor") else total_norm
        decisive = torch.as_tensor(whole, dtype=torch.float64, device=stats.total_norm.device)
        clipped, given = _clipped(stats, float(max_norm), decisive), set(map(id, params))
        for owner in owners:
            of_all = owner[1] <= given  # else the total may be that of several calls together
            _hand_on([owner], params, _with_total(clipped, decisive) if of_all else clipped)


def clip_grad_value_(parameters: Parameters, clip_value: float, foreach: bool | None = None) -> None:
    """`gradkern.clip_grad_value_`, recorded by the attached monitors of these parameters."""
    params = as_list("clip_grad_value_", parameters)
    owners = _owners(params)
    stats = measure(params) if owners else None
    functional.clip_grad_value_(params, clip_value, foreach)
    if stats is not None:
        _hand_on(owners, params, stats)


get_total_norm = functional.get_total_norm


def hand_on(params: Sequence[Tensor], stats: GradStats) -> None:
    """Report statistics of these parameters to the attached monitors that have them."""
    _hand_on(_owners(params), params, stats)


def _owners(params: Sequence[Tensor]) -> list[tuple[GradMonitor, frozenset[int]]]:
    """The attached monitors that have at least one of these parameters."""
    global called
    if torch.compiler.is_compiling():
        return []
    called = True
    if not (_attached or _open_for):
        return []
    found = _known(params)
    if not found and _open_for is not None and any(p.grad is not None for p in params):
        attach(_open_for(params))
        found = _known(params)
    return found


def _known(params: Sequence[Tensor]) -> list[tuple[GradMonitor, frozenset[int]]]:
    found = []
    for entry in list(_attached):
        if entry.monitor.is_open and (entry.when is None or entry.when()):
            members = entry.members()
            if any(id(p) in members for p in params):
                found.append((entry.monitor, members))
    return found


def _clipped(stats: GradStats, max_norm: float, decisive: Tensor) -> GradStats:
    coef = torch.ones_like(decisive) if max_norm == math.inf else coefficient(decisive, max_norm)
    return dataclasses.replace(
        stats, clip_coef=coef.to(stats.total_norm.dtype), applied=True, threshold=max_norm
    )


def _with_total(stats: GradStats, given: Tensor) -> GradStats:
    """The statistics with the total norm that the caller gives, if that has more in it than these gradients:
    those of other pipeline stages. torch rounds a total to the gradients' dtype, of bfloat16 by up to 2**-8.
    """
    own = stats.total_norm.double()
    total = torch.where(given > own * (1 + 2**-7), given, own)
    return dataclasses.replace(stats, total_norm=total.to(stats.total_norm.dtype))


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


def _hand_on(
    owners: list[tuple[GradMonitor, frozenset[int]]], params: Sequence[Tensor], stats: GradStats
) -> None:
    for monitor, members in owners:
        rows = [row for row, p in enumerate(params) if id(p) in members]
        monitor.collect(stats if len(rows) == len(params) else _of_rows(stats, rows))


def _of_rows(stats: GradStats, rows: list[int]) -> GradStats:
    """Some of the rows. Totals stay those of the whole clip, since the limit applies to them."""
    index = torch.tensor(rows, device=stats.norm.device)

    def chosen(values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(values[row] for row in rows)

    norm = stats.norm[index]
    identities = chosen(stats._identities)
    return dataclasses.replace(
        stats,
        names=chosen(stats.names),
        numel=chosen(stats.numel),
        has_grad=chosen(stats.has_grad),
        norm=norm,
        l2_norm=norm if stats.l2_norm is stats.norm else stats.l2_norm[index],
        max_abs=stats.max_abs[index],
        nonfinite=stats.nonfinite[index],
        zeros=None if stats.zeros is None else stats.zeros[index],
        first=first_rows(identities),
        _identities=identities,
    )
