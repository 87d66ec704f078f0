"""Facts of a run besides its numbers: the model's modules, its optimizers, the policy, the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradkern._util.names import canonical_names, distinct
from gradkern.history.rows import FactsRow
from gradkern.monitor.graph import GraphFacts
from gradkern.params.plan import ParameterPlan
from gradkern.params.stats import GradStats

#: Modules that are named; a model with more is told by its parameters' kinds (`History.params`).
MOST_MODULES = 20_000


class FactFinder:
    """Finds out what is noted of a run, at its first recorded steps and whenever the policy changes.

    Args:
        module: the model, if there is one.
        optimizers: by name; "" for the only one.
        submit: takes the rows.
    """

    def __init__(
        self,
        plan: ParameterPlan,
        module: torch.nn.Module | None,
        optimizers: Mapping[str, torch.optim.Optimizer],
        submit: Callable[[FactsRow], None],
    ) -> None:
        self._plan, self._module, self._optimizers, self._submit = plan, module, optimizers, submit
        self._graph = GraphFacts()
        self._begun = False
        self.policy: Any = None
        """That of the last step recorded; the same object as long as nothing changes."""
        self.done = False
        """Whether only a change of the policy is left to be noted."""

    def recorded(self, step: int, stats: GradStats, loss: Any, part: str = "") -> None:
        """A step was recorded. `loss` as the caller gave it: its graph is walked, at the first steps."""
        facts: dict[str, Any] = {}
        if not self._begun:
            self._begun = True
            facts = self._at_first(stats)
        if stats.policy is not self.policy:
            self.policy = stats.policy
            facts["policy"] = dict(stats.policy or {})
        if not self.done:
            names = self._names()
            if self._graph.add(loss, names, part):
                trainable = [names[id(p)] for p in self._plan.params if p.requires_grad]
                facts["graph"] = self._graph.to_json(trainable)
            self.done = not self._graph.left
        if facts:
            self._submit(FactsRow(step, facts))

    def _names(self) -> dict[int, str]:
        return dict(zip(self._plan.identities, distinct(self._plan.names)))

    def _at_first(self, stats: GradStats) -> dict[str, Any]:
        names = self._names()
        return {
            "modules": {} if self._module is None else module_kinds(self._module),
            "graph": {},
            "optimizers": [
                entry for name, one in self._optimizers.items() for entry in _groups_of(name, one, names)
            ],
            "policy": {},
            "gradient_dtypes": _gradient_dtypes(self._plan.params, names),
            "loss_scale": isinstance(stats.inv_scale, Tensor) or stats.inv_scale != 1.0,
        }


def module_kinds(model: torch.nn.Module) -> dict[str, str]:
    """The kind of each module by its canonical name; "" is the model itself."""
    found = list(model.named_modules())[:MOST_MODULES]
    names = canonical_names([name for name, _ in found])
    return {name: type(module).__name__ for name, (_, module) in zip(names, found)}


def _groups_of(name: str, optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> list[dict[str, Any]]:
    """What is plain of each parameter group: rates, betas, eps, …"""
    entries: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        plain = {key: _as_plain(value) for key, value in group.items() if key != "params"}
        entries.append(
            {
                "name": name,
                "class": type(optimizer).__name__,
                **{key: value for key, value in plain.items() if value is not None},
                "parameters": [names[id(p)] for p in group["params"] if id(p) in names],
            }
        )
    return entries


def _as_plain(value: Any) -> Any:
    """Numbers, texts and short lists of them; None for anything else. Waits for no device."""
    if isinstance(value, Tensor):
        return value.item() if value.is_cpu and value.numel() == 1 else None
    if isinstance(value, (list, tuple)):
        return [_as_plain(entry) for entry in value[:16]]
    return value if isinstance(value, (bool, int, float, str)) else None


def _gradient_dtypes(params: Sequence[Tensor], names: Mapping[int, str]) -> dict[str, Any]:
    """Parameters by the type of their gradients; "all" where it is one type."""
    found: dict[str, list[str]] = {}
    for param in params:
        if param.grad is not None:
            found.setdefault(str(param.grad.dtype), []).append(names[id(param)])
    if len(found) == 1:
        return dict.fromkeys(found, "all")
    return dict(found)
