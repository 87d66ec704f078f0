"""Layouts of statistics: the names and sizes of the parameters, with what the model says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gradkern._util.names import distinct
from gradkern.history.layout import Layout
from gradkern.params.stats import GradStats


class Plan(Protocol):
    """The parameters of a model, or of several: see `ParameterPlan`."""

    names: tuple[str, ...]
    params: list[Tensor]
    identities: tuple[int, ...]
    first: tuple[int, ...]
    numel: tuple[int, ...]

    def current(self) -> list[Tensor]: ...
    def sizes(self) -> tuple[int, ...]: ...


class Layouts:
    """Finds the layout of each step's statistics: the same object while the parameters are the same.

    Args:
        plan: the model's parameters.
        modules: the model, if it is a Module; or all models.
        optimizers: number the parameter groups.
        prefix: put before each name.
    """

    def __init__(
        self,
        plan: Plan,
        modules: Sequence[torch.nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        prefix: str = "",
    ) -> None:
        self._plan, self._modules, self._optimizers, self._prefix = plan, modules, optimizers, prefix
        self._layout: Layout | None = None
        self._rows: tuple[str, ...] = ()
        """Names of the layout's rows without the prefix."""
        self._names: Any = None
        self._numel: Any = None
        self._identities: Any = None

    def of(self, stats: GradStats) -> Layout:
        """The layout of some statistics."""
        names, numel, identities = stats.names, stats.numel, stats._identities
        known = self._layout
        if known and names is self._names and numel is self._numel and identities is self._identities:
            return known
        if known is None or (self._names, self._numel, self._identities) != (names, numel, identities):
            self._plan.current()
            self._rows, params = rows_of(stats, self._plan)
            known = self._layout = self._make(self._rows, stats.numel, stats.first, params)
        self._names, self._numel, self._identities = names, numel, identities
        return known

    def own(self) -> Layout:
        """The layout of the model's parameters as they are now."""
        plan, layout = self._plan, self._layout
        names = tuple(distinct(plan.names))
        if layout is not None and self._identities and numbered(names):  # the statistics have real names
            known = dict(zip(self._identities, self._rows))
            names = tuple(known.get(identity, name) for identity, name in zip(plan.identities, names))
        if layout is not None and names == self._rows and layout.numel.tolist() == list(plan.numel):
            return layout
        return self._make(names, plan.numel, plan.first, plan.params)

    def _make(
        self,
        names: tuple[str, ...],
        numel: tuple[int, ...],
        first: tuple[int, ...],
        params: Sequence[Tensor | None],
    ) -> Layout:
        prefixed = tuple(self._prefix + name for name in names) if self._prefix else names
        return layout_of(prefixed, numel, first, params, self._modules, self._optimizers)


def rows_of(stats: GradStats, plan: Plan) -> tuple[tuple[str, ...], list[Tensor | None]]:
    """The name and the parameter of each row of some statistics. No two names are equal.

    A row has the name that the model gives to its parameter, whatever the clipper calls it: built with
    ``model.parameters()``, a clipper knows only "0", "1", …; built with a submodule, it leaves out the
    beginning. A parameter that is not the model's keeps the clipper's name, as "weight (2)" where the model
    has a "weight" too. All rows keep the clipper's names if the model has only numbers. Statistics that do
    not know their parameters are matched by name.
    """
    if len(stats._identities) != len(stats.names):
        by_name: dict[str, Tensor] = dict(zip(plan.names, plan.params))
        return tuple(distinct(stats.names)), [by_name.get(name) for name in stats.names]
    keep = numbered(plan.names) and not numbered(stats.names)
    names = distinct(stats.names) if keep else _named_by(plan, stats)
    params = dict(zip(plan.identities, plan.params))
    return tuple(names), [params.get(identity) for identity in stats._identities]


def _named_by(plan: Plan, stats: GradStats) -> list[str]:
    """The model's names for its own parameters, and distinct ones for the others."""
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


def numbered(names: Sequence[str]) -> bool:
    """Whether the names are positions only: "0", "1", …"""
    return all(name == str(row) for row, name in enumerate(names))


def layout_of(
    names: tuple[str, ...],
    numel: tuple[int, ...],
    first: tuple[int, ...],
    params: Sequence[Tensor | None],
    modules: Sequence[torch.nn.Module],
    optimizers: Sequence[torch.optim.Optimizer],
) -> Layout:
    """A layout with these names, and details of the parameters that are known."""
    every_group = (group for optimizer in optimizers for group in optimizer.param_groups)
    groups = {id(p): number for number, group in enumerate(every_group) for p in group["params"]}
    kinds = _module_kinds(modules)
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


def _module_kinds(models: Sequence[torch.nn.Module]) -> dict[int, str]:
    """For each parameter the class of the module that owns it: "Linear", "LayerNorm"."""
    kinds: dict[int, str] = {}
    for model in models:
        for name, module in model.named_modules():
            owner = module
            if ".parametrizations." in f".{name}.":
                owner = model.get_submodule(name.partition("parametrizations")[0].rstrip("."))
            kinds.update({id(p): kind_of(owner) for p in module._parameters.values() if p is not None})
    return kinds


def kind_of(module: torch.nn.Module) -> str:
    """A module's class as its author named it: "Linear", also of a ParametrizedLinear, an FSDPLinear or a
    scripted Linear."""
    if isinstance(module, torch.jit.ScriptModule):
        return str(module.original_name)
    kind = type(module)
    if torch.nn.utils.parametrize.is_parametrized(module):
        return kind.__bases__[0].__name__
    if kind.__name__.startswith("FSDP") and len(kind.__bases__) == 2:
        return kind.__bases__[1].__name__
    return kind.__name__
