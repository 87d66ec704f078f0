"""`clip_grad_norm_` with ``optimizer.param_groups``, of which each group can have its own ``max_norm``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from gradkern.clipping import compiled, observing, reported, route, verdict
from gradkern.clipping.overlap import check_no_overlap
from gradkern.clipping.route import Cache, RankGroups
from gradkern.kernels.measured import Measured
from gradkern.kernels.torch_scale import coefficient
from gradkern.params.arguments import as_limit, as_list, as_order, check_entries
from gradkern.params.names import elements_of, identify
from gradkern.params.stats import GradStats

ParamGroups = Sequence[Mapping[str, Any]]
"""As ``optimizer.param_groups``."""

OPERATION = "clip_grad_norm_"


def are_param_groups(parameters: Any) -> TypeGuard[ParamGroups]:
    """Whether an argument is a list of dicts, like ``optimizer.param_groups``."""
    if not isinstance(parameters, (list, tuple)) or not parameters or isinstance(parameters[0], Tensor):
        return False
    return isinstance(parameters[0], Mapping)


def with_lists(groups: ParamGroups) -> list[dict[str, Any]]:
    """The groups with lists of parameters, which can be read several times.

    Raises:
        TypeError: a group has no parameters, or something else in their place.
    """
    return [{**group, "params": _as_list(group, i)} for i, group in enumerate(groups)]


@torch.no_grad()
def clip(
    groups: ParamGroups,
    max_norm: Any,
    norm_type: Any,
    error_if_nonfinite: bool,
    ranks: RankGroups,
) -> Tensor:
    """See `gradkern.clip_grad_norm_`."""
    listed = [_as_list(group, i) for i, group in enumerate(groups)]
    limits = [_limit(group, i) for i, group in enumerate(groups)]
    max_norm = as_limit(OPERATION, "max_norm", max_norm)
    norm_type = as_order(OPERATION, norm_type)
    params = [param for own in listed for param in own]
    if all(limit is None for limit in limits):
        named = (ranks.process_group, ranks.pp_group) if ranks.named else None
        arguments = max_norm, norm_type, error_if_nonfinite
        total: Tensor = reported.run(OPERATION, params, arguments, None, named)
        return total
    if torch.compiler.is_compiling():
        return _traced(listed, limits, max_norm, norm_type, error_if_nonfinite, ranks)
    names = [f"parameters[{i}]['params'][{j}]" for i, own in enumerate(listed) for j in range(len(own))]
    rows, bounds = _norm_groups(_members(listed), limits, max_norm)
    held = [param.grad for param in params]
    check_no_overlap({str(i): own for i, own in enumerate(rows)}, held, names, operation=OPERATION)
    route.misuse.check_used(OPERATION, params)
    cache = Cache()
    measured = route.measure(OPERATION, params, names, norm_type, False, 1.0, ranks, cache, rows)
    if error_if_nonfinite:
        _raise_if_nonfinite(measured, norm_type, names)
    report, factors = observing.observed(params), _factors(measured, rows, bounds)
    verdict.apply(params, factors, None, cache.held)
    if not ranks.named:  # otherwise other ranks may have gradients
        route.misuse.check_present(OPERATION, params)
    if report is not None:
        report(_statistics(params, names, measured, norm_type, factors))
    return measured.total_norm


def _statistics(
    params: Sequence[Tensor], names: Sequence[str], measured: Measured, norm_type: float, factors: Tensor
) -> GradStats:
    identities, first = identify(params)
    return GradStats.of(
        measured,
        tuple(names),
        tuple(map(elements_of, params)) if measured.numel is None else measured.numel,
        first,
        identities,
        norm_type,
        clip_coef=verdict.smallest(factors).to(measured.total_norm.dtype),
        applied=True,
        _factor=factors,
    )


def _traced(
    listed: Sequence[Sequence[Tensor]],
    limits: Sequence[Any],
    max_norm: Any,
    norm_type: float,
    error_if_nonfinite: bool,
    ranks: RankGroups,
) -> Tensor:
    """The groups in a graph of torch.compile, in which each group is read and scaled by itself."""
    rows, bounds = _norm_groups(_members(listed), limits, max_norm)
    params = [param for own in listed for param in own]
    if ranks.named or compiled.leaves_graph(params):
        from gradkern.clipping.graph_break import outside_the_graph  # the compiler has been imported already

        groups = [{"params": [params[i] for i in own], "max_norm": b} for own, b in zip(rows, bounds)]
        arguments = max_norm, norm_type, error_if_nonfinite
        total: Tensor = outside_the_graph(_outside, OPERATION, groups, arguments, None, ranks)
        return total
    return compiled.clip_groups(params, rows, bounds, norm_type, error_if_nonfinite)


def _outside(_: str, groups: Any, arguments: tuple[Any, ...], __: None, ranks: RankGroups) -> Tensor:
    max_norm, norm_type, error_if_nonfinite = arguments
    return clip(groups, max_norm, norm_type, error_if_nonfinite, ranks)


def _factors(measured: Measured, rows: list[list[int]], bounds: list[float]) -> Tensor:
    """[N]: the factor of each gradient. Nothing is copied from the host: limits are filled in on the device,
    and runs of rows are expanded there."""
    assert measured.group_norm is not None
    of_group = [
        coefficient(norm, bound).reshape(1) for norm, bound in zip(measured.group_norm.unbind(), bounds)
    ]
    of_row = [0] * sum(map(len, rows))
    for number, members in enumerate(rows):
        for row in members:
            of_row[row] = number
    runs = [of_group[number].expand(len(list(run))) for number, run in itertools.groupby(of_row)]
    return torch.cat(runs) if runs else measured.group_norm.new_ones(0)


def _raise_if_nonfinite(measured: Measured, norm_type: float, names: Sequence[str]) -> None:
    if not bool(measured.total_norm.isfinite()):
        raise RuntimeError(
            f"[{OPERATION}] The total norm of order {norm_type} for gradients from `parameters` is "
            "non-finite, so it cannot be clipped. Non-finite: "
            f"{verdict.bad_parameters(measured.nonfinite, names)}. Gradients are unchanged; to scale them by "
            "the non-finite norm anyway, set `error_if_nonfinite=False`."
        )


def _members(listed: Sequence[Sequence[Tensor]]) -> list[list[int]]:
    """The rows of each group. Of a parameter in several groups all rows are in the first."""
    owner: dict[int, int] = {}
    members: list[list[int]] = [[] for _ in listed]
    row = 0
    for number, own in enumerate(listed):
        for param in own:
            members[owner.setdefault(id(param), number)].append(row)
            row += 1
    return members


def _norm_groups(
    listed: Sequence[list[int]], limits: Sequence[float | None], max_norm: float
) -> tuple[list[list[int]], list[float]]:
    """The rows of each group that has its own limit and, last, of all others together; and the limits."""
    rows: list[list[int]] = []
    others: list[int] = []
    for members, limit in zip(listed, limits):
        if limit is None:
            others += members
        else:
            rows.append(members)
    return [*rows, others], [*(limit for limit in limits if limit is not None), max_norm]


def _as_list(group: Any, position: int) -> list[Tensor]:
    if not isinstance(group, Mapping) or "params" not in group:
        raise TypeError(
            f"[{OPERATION}] parameters[{position}]: expected a dict with 'params', like the others, got "
            f"{sorted(map(str, group)) if isinstance(group, Mapping) else type(group).__name__}"
        )
    what = f"parameters[{position}]['params']"
    listed = list(as_list(OPERATION, group["params"], what))
    check_entries(OPERATION, listed, what)
    return listed


def _limit(group: Mapping[str, Any], position: int) -> Any:
    limit = group.get("max_norm")
    return None if limit is None else as_limit(OPERATION, f"parameters[{position}]['max_norm']", limit)
