"""Which parameters the rows of a step are about: names and sizes, with what the model says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gradkern.monitor.columns import Layout
from gradkern.plan import ParameterPlan
from gradkern.stats import GradStats


class Layouts:
    """The layout of each step's statistics: the same object as long as the parameters are the same."""

    def __init__(
        self,
        plan: ParameterPlan,
        model: torch.nn.Module | None,
        optimizer: torch.optim.Optimizer | None,
    ) -> None:
        self._plan, self._model, self._optimizer = plan, model, optimizer
        self._layout: Layout | None = None
        self._names: Any = None
        self._numel: Any = None

    def of(self, stats: GradStats) -> Layout:
        """That of some statistics."""
        if self._layout is not None and stats.names is self._names and stats.numel is self._numel:
            return self._layout
        if self._layout is None or (self._names, self._numel) != (stats.names, stats.numel):
            plan = self._plan
            plan.current()
            names = plan.names if matches_plan(stats, plan) else stats.names
            self._layout = layout_of(names, stats.numel, stats.first, plan, self._model, self._optimizer)
        self._names, self._numel = stats.names, stats.numel
        return self._layout

    def own(self) -> Layout:
        """That of the model's parameters as they are now."""
        plan, layout = self._plan, self._layout
        if layout is not None and _same(layout, plan.names, plan.numel):
            return layout
        return layout_of(plan.names, plan.numel, plan.first, plan, self._model, self._optimizer)


def _same(layout: Layout, names: Sequence[str], numel: Sequence[int]) -> bool:
    return layout.names == names and layout.numel.tolist() == list(numel)


def matches_plan(stats: GradStats, plan: ParameterPlan) -> bool:
    """Whether the statistics are of the plan's parameters without knowing their names.

    That is so for a clipper made with ``model.parameters()``: it calls them "0", "1", ….
    """
    if stats.numel != plan.numel:
        return False
    return all(name == str(i) for i, name in enumerate(stats.names))


def layout_of(
    names: tuple[str, ...],
    numel: tuple[int, ...],
    first: tuple[int, ...],
    plan: ParameterPlan,
    model: torch.nn.Module | None,
    optimizer: torch.optim.Optimizer | None,
) -> Layout:
    """The layout of statistics with these names, with what the plan's parameters say of them."""
    known = dict(zip(plan.names, plan.params))
    groups = (
        {}
        if optimizer is None
        else {id(p): number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
    )
    kinds = _module_kinds(model)
    details: dict[str, list[Any]] = {}
    if all(name in known for name in names):
        params = [known[name] for name in names]
        details = {
            "shape": [list(p.shape) for p in params],
            "dtype": [str(p.dtype).removeprefix("torch.") for p in params],
            "trainable": [p.requires_grad for p in params],
            "group": [groups.get(id(p), -1) for p in params],
            "kind": [kinds.get(id(p), "") for p in params],
        }
    return Layout(_unique(names), np.array(numel, dtype=np.int64), np.array(first, dtype=np.int64), details)


def _module_kinds(model: torch.nn.Module | None) -> dict[int, str]:
    """For each parameter the class of the module that owns it: "Linear", "LayerNorm"."""
    if model is None:
        return {}
    return {id(p): type(m).__name__ for m in model.modules() for p in m._parameters.values() if p is not None}


def _unique(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names with a number behind those that stand there already."""
    if len(set(names)) == len(names):
        return names
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return tuple(out)
