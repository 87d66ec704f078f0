"""What is noted of a run and of its parameters besides the numbers."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from gradkern.monitor.columns import Layout
from gradkern.plan import ParameterPlan
from gradkern.stats import GradStats
from gradkern.version import __version__


def describe_run(
    optimizer: torch.optim.Optimizer | None, every: int, update_every: int, histogram_every: int, rank: int
) -> dict[str, Any]:
    """Entries of `History.meta`."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return {
        "gradkern": __version__,
        "torch": torch.__version__,
        "opened": time.time(),
        "every": every,
        "update_every": update_every,
        "histogram_every": histogram_every,
        "optimizer": None if optimizer is None else type(optimizer).__name__,
        "rank": rank,
        "world_size": torch.distributed.get_world_size() if distributed else 1,
    }


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
