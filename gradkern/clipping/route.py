"""Choose the backend for a list of gradients: the kernels, the functions over ranks, or torch's operations.

The drop-in functions call `run`. What measures before it clips calls `measure`. `GradClipper` and the
policies Value and AGC first ask the extension to do the whole step in one call. The operations of
`kernels.scale`, `kernels.policy_steps`, `distributed.packing` and `compat` have their own fallback to torch
beside them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradkern.clipping import compiled
from gradkern.kernels import torch_ops, verify
from gradkern.kernels.backend import C
from gradkern.kernels.dtensors import is_distributed, is_dtensor
from gradkern.kernels.extension import VERIFY
from gradkern.kernels.measured import Measured
from gradkern.params import steps
from gradkern.params.misuse import DropInMisuse

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class RankGroups:
    """The further ranks that share a list; see `GradClipper`."""

    process_group: ProcessGroup | None = None
    pp_group: ProcessGroup | None = None
    in_group: Callable[[int], bool] | None = None
    elsewhere: Callable[[int], bool] | None = None

    @property
    def named(self) -> bool:
        return self.process_group is not None or self.pp_group is not None or self.elsewhere is not None

    @property
    def hold_parts(self) -> bool:
        """Whether other ranks have other parameters, so that a named group can have none on this one."""
        return self.process_group is not None or self.pp_group is not None

    def as_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `RankPlan`."""
        return {
            "process_group": self.process_group,
            "pp_group": self.pp_group,
            "in_group": self.in_group,
            "elsewhere": self.elsewhere,
            "prefer_world": True,
        }


NO_GROUPS = RankGroups()


@dataclass
class Cache:
    """What a clipper or a monitor keeps from call to call."""

    plan: Any = None
    """The `RankPlan` of the last call."""
    held: Sequence[Tensor | None] | None = None
    """The tensor of each gradient that this rank holds, in the current call."""
    names: Sequence[str] | None = None
    """The names that the plan was made for. Another object means other parameters."""


def run(
    operation: str,
    tensors: Sequence[Tensor],
    arguments: tuple[Any, ...],
    foreach: bool | None = None,
    groups: tuple[ProcessGroup | None, ProcessGroup | None] | None = None,
) -> Any:
    """Run one of the drop-in functions.

    Args:
        operation: its name.
        tensors, arguments: its arguments, converted and checked.
        foreach: for torch's operations.
        groups: `process_group` and `pp_group`, if one of them is given.
    """
    if torch.compiler.is_compiling():
        return compiled.run(run, operation, tensors, arguments, foreach, groups)
    if groups is not None:
        return getattr(_ranks(), operation)(tensors, *arguments, *groups)
    clips = operation != "get_total_norm"
    if clips and (steps.noted or not steps.watching):
        misuse.check_used(operation, tensors)
    done = getattr(C, operation)(tensors, *arguments)
    if done is None or done is False:
        if is_distributed(tensors):
            done = getattr(_ranks(), operation)(tensors, *arguments)
        else:
            done = getattr(torch_ops, operation)(tensors, *arguments, foreach)
    if isinstance(done, Tensor) and done.is_cpu and tensors and not getattr(tensors[0], "is_cpu", True):
        done = _moved(tensors, done)
    if clips:
        misuse.check_present(operation, tensors)
    return done


#: The warnings of all drop-in functions.
misuse = DropInMisuse()


def _moved(tensors: Sequence[Tensor], total: Tensor) -> Tensor:
    """Without gradients, the zero norm on the parameters' device."""
    return total if any(t.grad is not None for t in tensors) else total.to(tensors[0].device)


def _ranks() -> Any:
    from gradkern.distributed import functions

    return verify.Verified(functions) if VERIFY else functions


def measure(
    operation: str,
    params: Sequence[Tensor],
    names: Sequence[str],
    norm_type: float,
    count_zeros: bool,
    inv_scale: float | Tensor = 1.0,
    groups: RankGroups = NO_GROUPS,
    cache: Cache | None = None,
    members: Sequence[Sequence[int]] | None = None,
) -> Measured:
    """Measure every gradient and all of them together. One read.

    Args:
        members: the positions of each named group, for `group_norm`. An empty list gives `wide_norm` only.
    """
    cache = Cache() if cache is None else cache
    if cache.names is not names:
        cache.plan, cache.names = None, names
    cache.held = None
    if groups.named or cache.plan is not None or is_distributed(params):
        options = norm_type, count_zeros, inv_scale, *(() if members is None else (members,))
        return _measure_over_ranks(operation, params, names, groups, cache, options)
    if members is not None:
        return _measure_packed(params, names, norm_type, count_zeros, inv_scale, members)
    number = inv_scale if isinstance(inv_scale, float) else 1.0
    columns = C.measure(params, norm_type, count_zeros, number, names)
    if columns is None:
        measured = torch_ops.measure(params, norm_type, count_zeros, number, operation, names)
    else:
        measured = Measured(**on_home_device(columns, params))
    return measured if isinstance(inv_scale, float) else _scaled(measured, norm_type, inv_scale.abs())


def on_home_device(columns: dict[str, Any], params: Sequence[Tensor]) -> dict[str, Any]:
    """Without gradients, the extension's results on the parameters' device."""
    if True in columns["has_grad"] or not params or params[0].device == columns["total_norm"].device:
        return columns
    home = params[0].device
    return {name: v.to(home) if isinstance(v, Tensor) else v for name, v in columns.items()}


def _scaled(measured: Measured, norm_type: float, scale: Tensor) -> Measured:
    """The measurement with every norm multiplied by a scale on a device."""
    keys = ["l2_norm", "max_abs"]
    if norm_type != 0:  # order 0 counts elements
        keys += ["norm", "total_norm", "decision_norm"]
    return dataclasses.replace(measured, **{key: getattr(measured, key) * scale for key in keys})


def _measure_packed(
    params: Sequence[Tensor],
    names: Sequence[str],
    norm_type: float,
    count_zeros: bool,
    inv_scale: float | Tensor,
    members: Sequence[Sequence[int]],
) -> Measured:
    from gradkern.distributed.packing import measure_here

    grads = [p.grad for p in params]
    home = torch_ops.home(params, [g for g in grads if g is not None])
    measured = measure_here(grads, members, norm_type, count_zeros, inv_scale, names, home)
    if VERIFY:
        verify.check_rows(
            "GradClipper.clip_", verify.snapshot(grads), grads, measured, norm_type, float(inv_scale)
        )
    return measured


def _measure_over_ranks(
    operation: str,
    params: Sequence[Tensor],
    names: Sequence[str],
    groups: RankGroups,
    cache: Cache,
    options: tuple[Any, ...],
) -> Measured:
    grads = [p.grad for p in params]
    together = _together(
        params, grads, plan=cache.plan, operation=operation, names=names, **groups.as_arguments()
    )
    cache.plan, cache.held = together.plan, together.held
    measured: Measured = together.measured(*options)
    if VERIFY and not groups.named:
        norm_type, _, inv_scale = options[:3]
        verify.check_rows(operation, verify.snapshot(grads), grads, measured, norm_type, float(inv_scale))
    return measured


def agree(
    operation: str,
    params: Sequence[Tensor],
    names: Sequence[str],
    settings: Mapping[str, object],
    groups: RankGroups,
    cache: Cache,
    named_groups: Mapping[str, Sequence[int]],
) -> None:
    """Check that all ranks of the groups have the same settings, and all ranks of every mesh also the same
    parameters in the same named groups. Two small collectives over the groups and each mesh, where there are
    any.

    Args:
        settings: what has to be the same on every rank, by argument.

    Raises:
        ValueError: they differ. Raised on every rank of the groups or the mesh.
    """
    if groups.named:
        from gradkern.distributed.agreement import agree_on_settings, check_held

        over = {"process_group": groups.process_group, "pp_group": groups.pp_group}
        agree_on_settings(operation, settings, over)
        check_held(operation, {name: len(rows) for name, rows in named_groups.items()}, over)
    if not is_distributed(params):
        return
    together = _together(params, [p.grad for p in params], operation=operation, **groups.as_arguments())
    of_row = {row: name for name, rows in named_groups.items() for row in rows}
    together.plan.agree(operation, names, params, settings, of_row)
    cache.plan, cache.names = together.plan, names


def agree_on_skip(skip: Tensor | None, groups: RankGroups, device: torch.device) -> Tensor | None:
    """Whether a rank of the groups skips the step: 0-d bool on every rank of them. One all-reduce of 4 bytes
    per group.

    Args:
        skip: what this rank has decided; None means no.
        device: where to return it.
    """
    given = [group for group in (groups.process_group, groups.pp_group) if group is not None]
    if not given:
        return skip
    from gradkern.distributed.reduce import any_rank

    return any_rank(torch.zeros((), dtype=torch.bool, device=device) if skip is None else skip, given)


def _together(*args: Any, **options: Any) -> Any:
    from gradkern.distributed.measure import Distributed

    return Distributed(*args, **options)


def written_shards(grads: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """The tensors that in-place operations write to: a DTensor's local tensor, or the gradient."""
    if not any(is_dtensor(g) for g in grads):
        return grads
    from gradkern.distributed.placements import written_shards as local

    return local(grads)
