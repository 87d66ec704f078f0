"""Which parameters the rows of a step are about: names and sizes, with what the model says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradkern._util.names import distinct
from gradkern.history.layout import Layout
from gradkern.params.plan import ParameterPlan
from gradkern.params.stats import GradStats


class Layouts:
    """The layout of each step's statistics: the same object as long as the parameters are the same."""

    def __init__(
        self,
        plan: ParameterPlan,
        model: torch.nn.Module | None,
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        self._plan, self._model, self._optimizers = plan, model, optimizers
        self._layout: Layout | None = None
        self._names: Any = None
        self._numel: Any = None
        self._identities: Any = None

    def of(self, stats: GradStats) -> Layout:
        """That of some statistics."""
        names, numel, identities = stats.names, stats.numel, stats._identities
        known = self._layout
        if known and names is self._names and numel is self._numel and identities is self._identities:
            return known
        if known is None or (self._names, self._numel, self._identities) != (names, numel, identities):
            known = self._layout = self._find(stats)
        self._names, self._numel, self._identities = names, numel, identities
        return known

    def _find(self, stats: GradStats) -> Layout:
        self._plan.current()
        names, params = rows_of(stats, self._plan)
        return layout_of(names, stats.numel, stats.first, params, self._model, self._optimizers)

    def own(self) -> Layout:
        """That of the model's parameters as they are now."""
        plan, layout = self._plan, self._layout
        names = tuple(distinct(plan.names))
        if layout is not None and self._identities and _numbered(names):  # the statistics know better
            known = dict(zip(self._identities, layout.names))
            names = tuple(known.get(identity, name) for identity, name in zip(plan.identities, names))
        if layout is not None and _same(layout, names, plan.numel):
            return layout
        return layout_of(names, plan.numel, plan.first, plan.params, self._model, self._optimizers)


def _same(layout: Layout, names: Sequence[str], numel: Sequence[int]) -> bool:
    return layout.names == names and layout.numel.tolist() == list(numel)


def rows_of(stats: GradStats, plan: ParameterPlan) -> tuple[tuple[str, ...], list[Tensor | None]]:
    """The name, no two alike, and the parameter of each row of some statistics.

    A clipper made with ``model.parameters()`` calls them "0", "1", …, one of a submodule leaves its
    beginning out: the model's name is that of the very same parameter. A row whose parameter is not
    the model's keeps its own, with a number behind it where the model has that name too. All keep
    theirs if the model's names are only numbers. Statistics that do not know their parameters are
    told by the names.
    """
    if len(stats._identities) != len(stats.names):
        by_name: dict[str, Tensor] = dict(zip(plan.names, plan.params))
        return tuple(distinct(stats.names)), [by_name.get(name) for name in stats.names]
    keep = _numbered(plan.names) and not _numbered(stats.names)
    names = distinct(stats.names) if keep else _named_by(plan, stats)
    params = dict(zip(plan.identities, plan.params))
    return tuple(names), [params.get(identity) for identity in stats._identities]


def _named_by(plan: ParameterPlan, stats: GradStats) -> list[str]:
    """The model's names for its own parameters; the others' are told apart from all of these."""
    mine = distinct(plan.names)
    free: dict[int, list[str]] = {}  # a parameter that the model lists twice has two names
    for name, identity in zip(mine, plan.identities):
        free.setdefault(identity, []).append(name)
    names: dict[int, str] = {}
    rows = list(enumerate(zip(stats.names, stats._identities)))
    for row, (name, identity) in rows:
        if name in free.get(identity, ()):
            free[identity].remove(name)
            names[row] = name
    for row, (_, identity) in rows:
        if row not in names and free.get(identity):
            names[row] = free[identity].pop(0)
    others = [row for row, _ in rows if row not in names]
    names.update(zip(others, distinct([*mine, *(stats.names[row] for row in others)])[len(mine) :]))
    return [names[row] for row, _ in rows]


def _numbered(names: Sequence[str]) -> bool:
    """Whether they only say the position, as those of ``model.parameters()``."""
    return all(name == str(row) for row, name in enumerate(names))


def layout_of(
    names: tuple[str, ...],
    numel: tuple[int, ...],
    first: tuple[int, ...],
    params: Sequence[Tensor | None],
    model: torch.nn.Module | None,
    optimizers: Sequence[torch.optim.Optimizer],
) -> Layout:
    """The layout of statistics with these names; with details of the parameters that are known."""
    every_group = (group for optimizer in optimizers for group in optimizer.param_groups)
    groups = {id(p): number for number, group in enumerate(every_group) for p in group["params"]}
    kinds = _module_kinds(model)
    details: dict[str, list[Any]] = {}
    if any(p is not None for p in params):
        details = {
            "shape": [p if p is None else list(p.shape) for p in params],
            "dtype": [p if p is None else str(p.dtype).removeprefix("torch.") for p in params],
            "trainable": [p if p is None else p.requires_grad for p in params],
            "group": [p if p is None else groups.get(id(p), -1) for p in params],
            "kind": [p if p is None else kinds.get(id(p), "") for p in params],
        }
    return Layout(names, np.array(numel, dtype=np.int64), np.array(first, dtype=np.int64), details)


def _module_kinds(model: torch.nn.Module | None) -> dict[int, str]:
    """For each parameter the class of the module that owns it: "Linear", "LayerNorm"."""
    if model is None:
        return {}
    kinds: dict[int, str] = {}
    for name, module in model.named_modules():
        owner = (
            model.get_submodule(name.partition("parametrizations")[0].rstrip("."))
            if (".parametrizations." in f".{name}.")
            else module
        )
        kinds.update({id(p): kind_of(owner) for p in module._parameters.values() if p is not None})
    return kinds


def kind_of(module: torch.nn.Module) -> str:
    """The class that a module had before torch replaced it: "Linear" of a ParametrizedLinear, FSDPLinear or
    scripted one."""
    if isinstance(module, torch.jit.ScriptModule):
        return str(module.original_name)
    kind = type(module)
    if torch.nn.utils.parametrize.is_parametrized(module):
        return kind.__bases__[0].__name__
    if kind.__name__.startswith("FSDP") and len(kind.__bases__) == 2:
        return kind.__bases__[1].__name__
    return kind.__name__
