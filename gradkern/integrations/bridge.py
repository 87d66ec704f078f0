"""Reports the clips of a monitor's parameters to the attached monitors, whoever makes them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from gradkern.clipping import functional, observing, param_groups
from gradkern.monitor import GradMonitor
from gradkern.monitor.models.combine import rows_of, with_total
from gradkern.params import steps
from gradkern.params.stats import GradStats

Parameters = Tensor | Iterable[Tensor]
_F = TypeVar("_F", bound=Callable[..., Any])


class _Attached:
    """A monitor, the ids of its parameters, and a gradient as its last clip has left it."""

    def __init__(self, monitor: GradMonitor, when: Callable[[], bool] | None) -> None:
        self.monitor, self.when = monitor, when
        self._identities: tuple[int, ...] = ()
        self._members: frozenset[int] = frozenset()
        self._left: steps.SeenGradient | None = None

    def members(self) -> frozenset[int]:
        identities = self.monitor.identities()
        if identities is not self._identities:
            self._identities, self._members = identities, frozenset(identities)
        return self._members

    def wants(self, params: Sequence[Tensor]) -> bool:
        """Whether the monitor records a clip of these parameters."""
        if not self.monitor.is_open or not (self.when is None or self.when()):
            return False
        members = self.members()
        return any(id(p) in members for p in params)

    def is_unchanged(self) -> bool:
        """Whether gradients are as the last clip has left them: nothing was added in between."""
        return self._left is not None and self._left.has_changed() is False

    def note(self, params: Sequence[Tensor]) -> None:
        """A clip of these parameters was made."""
        members = self.members()
        left = steps.SeenGradient.first_of(p for p in params if id(p) in members)
        self._left = left or self._left


class _Report:
    """Takes the statistics of a clip to the monitors that have its parameters."""

    def __init__(self, params: Sequence[Tensor], owners: Sequence[_Attached]) -> None:
        self._params, self._owners = params, owners
        self._again = [owner.is_unchanged() for owner in owners]

    def __call__(self, stats: GradStats, total: Tensor | None = None) -> None:
        given = set(map(id, self._params))
        for owner, again in zip(self._owners, self._again):
            members = owner.members()
            rows = [row for row, p in enumerate(self._params) if id(p) in members]
            own = stats if len(rows) == len(self._params) else rows_of(stats, rows)
            if total is not None and members <= given:  # else the total may be that of several calls together
                own = with_total(own, total)
            owner.monitor.collect(own, again=again)
            owner.note(self._params)


_attached: list[_Attached] = []
_lock = threading.Lock()
_open_for: Callable[[Sequence[Tensor]], GradMonitor] | None = None
#: Whether a clipping function was called in this process, outside of a compiled graph: torch's while it is
#: patched, or any while clips are observed.
called = False


def attach(monitor: GradMonitor, when: Callable[[], bool] | None = None) -> None:
    """Report the clips of a monitor's parameters to it until it is closed or detached. Idempotent."""
    if not isinstance(monitor, GradMonitor):
        raise TypeError(f"[patch_torch] monitor: expected a GradMonitor, got {type(monitor).__name__}")
    with _lock:
        _set_attached([*_others(monitor), _Attached(monitor, when)])


def detach(monitor: GradMonitor) -> None:
    """Stop reporting to a monitor."""
    with _lock:
        _set_attached(_others(monitor))


def _others(monitor: GradMonitor) -> list[_Attached]:
    return [entry for entry in _attached if entry.monitor is not monitor and entry.monitor.is_open]


def _set_attached(entries: list[_Attached]) -> None:
    _attached[:] = entries
    observing.observer = _observe if _attached or _open_for else None


def detach_all() -> None:
    """Stop reporting to all monitors."""
    on_unknown(None)
    with _lock:
        _set_attached([])


def on_unknown(open_for: Callable[[Sequence[Tensor]], GradMonitor] | None) -> None:
    """Call `open_for` for a new monitor when parameters are clipped that no attached monitor has."""
    global _open_for
    with _lock:
        _open_for = open_for
        _set_attached(list(_attached))


def is_attached(monitor: GradMonitor) -> bool:
    """Whether the clips of a monitor's parameters are reported to it."""
    return any(entry.monitor is monitor for entry in _attached)


def _observe(params: Sequence[Tensor]) -> _Report | None:
    """See `observing.observer`."""
    global called
    called = True
    owners = [entry for entry in list(_attached) if entry.wants(params)]
    if not owners and _open_for is not None and any(p.grad is not None for p in params):
        attach(_open_for(params))
        owners = [entry for entry in list(_attached) if entry.wants(params)]
    return _Report(params, owners) if owners else None


# ---- what torch's functions are replaced by ----


def _noting(function: _F) -> _F:
    """The function, noting that it was called."""

    @functools.wraps(function)
    def noting(*args: Any, **kwargs: Any) -> Any:
        global called
        if not torch.compiler.is_compiling():
            called = True
        return function(*args, **kwargs)

    return cast(_F, noting)


@_noting
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
    """`gradkern.clip_grad_norm_` with torchtitan's further arguments.

    Args:
        pp_mesh: torchtitan's mesh of pipeline stages; its group becomes `pp_group`.
        ep_enabled: ignored. torchtitan passes it, but the parameters of experts are DTensors anyway.
    """
    if pp_mesh is not None:
        groups.setdefault("pp_group", pp_mesh.get_group())
    given = cast(Parameters, parameters)
    return functional.clip_grad_norm_(given, max_norm, norm_type, error_if_nonfinite, foreach, **groups)


clip_grads_with_norm_ = _noting(functional.clip_grads_with_norm_)
clip_grad_value_ = _noting(functional.clip_grad_value_)
get_total_norm = functional.get_total_norm
