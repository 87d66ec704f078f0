"""Facts of a run besides its numbers: the model's modules, its optimizers, the policy, the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradkern._util.names import canonical_names, distinct
from gradkern.history.rows import FactsRow
from gradkern.monitor.backward import BackwardWatch
from gradkern.monitor.graph import GraphFacts, Seen
from gradkern.monitor.models.layouts import Plan
from gradkern.params.stats import GradStats

#: Modules of a model that are noted at most; `History.params` has the kinds of all that own parameters.
MOST_MODULES = 20_000


class FactFinder:
    """Finds the facts of a run at its first recorded steps, and whenever a policy changes.

    Args:
        plan: all parameters.
        parts: names of the models; empty for a single one.
        modules: the models by the names of the parts, "" for a single one; only those that are Modules.
        optimizers: by name; "" for a single one.
        submit: takes the rows.
    """

    def __init__(
        self,
        plan: Plan,
        parts: Sequence[str],
        modules: Mapping[str, torch.nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        submit: Callable[[FactsRow], None],
    ) -> None:
        self._plan, self._parts, self._modules = plan, parts, modules
        self._optimizers, self._submit = optimizers, submit
        self._graph = GraphFacts()
        self._watches: dict[str, BackwardWatch] = {}
        self._seen: dict[str, list[Seen | None]] = {}
        """What was seen in each `backward` since a part's last step."""
        self._policies: dict[str, Any] = {}
        """`GradStats.policy` of each part's last step; the same object while nothing changes."""
        self._settled = False

    def settled(self, part: str, policy: Any) -> bool:
        """Whether nothing is left to find of a part, whose step has this `GradStats.policy`."""
        return self._settled and policy is self._policies.get(part, self)

    def recorded(self, step: int, stats: GradStats, loss: Any, part: str = "") -> None:
        """A step was recorded.

        Args:
            loss: as the caller gave it. At the first steps its graph is walked; without one, that of the
                next `backward`.
        """
        facts: dict[str, Any] = {}
        names = dict(zip(self._plan.identities, distinct(self._plan.names)))
        if part not in self._policies:
            facts = self._at_first(stats, names)
        if part not in self._policies or stats.policy is not self._policies[part]:
            self._policies[part] = stats.policy
            facts["policy"] = self._policy_fact()
        if self._graph.left(part) and self._sees_graph(loss, names, part):
            idle = [names[id(p)] for p in self._plan.params if p.requires_grad and p.grad is None]
            facts["graph"] = self._graph.to_json(idle)
        if facts:
            self._submit(FactsRow(step, facts))
        if not self._graph.left(part) and part in self._watches:
            self._watches.pop(part).close()
        self._settled = not any(self._graph.left(part) for part in self._policies)

    def _sees_graph(self, loss: Any, names: Mapping[int, str], part: str) -> bool:
        has_graph = isinstance(loss, Tensor) and loss.grad_fn is not None
        found = self._graph.add(loss, names, part)
        return found if has_graph else self._watched(names, part)

    def _watched(self, names: Mapping[int, str], part: str) -> bool:
        """The step's loss has no graph: watch the calls of `backward` until the next one. Returns whether
        those before this one change the fact."""

        def found(root: Any) -> None:
            self._seen[part].append(None if root is None else self._graph.look(root, names))

        changed = self._graph.take(self._seen.get(part, ()), part)
        self._seen[part] = []
        if part not in self._watches:
            self._watches[part] = BackwardWatch(found)
        own = [p for p in self._plan.params if not part or names[id(p)].startswith(f"{part}.")]
        self._watches[part].arm(own)
        return changed

    def close(self) -> None:
        """Remove all hooks."""
        for watch in self._watches.values():
            watch.close()

    def _policy_fact(self) -> dict[str, Any]:
        if set(self._policies) == {""}:
            return dict(self._policies[""] or {})
        return {"parts": {part: dict(policy or {}) for part, policy in self._policies.items()}}

    def _at_first(self, stats: GradStats, names: Mapping[int, str]) -> dict[str, Any]:
        optimizers = self._optimizers.items()
        facts = {
            "modules": modules_of(self._modules),
            "optimizers": [entry for name, one in optimizers for entry in _groups_of(name, one, names)],
            "gradient_dtypes": _gradient_dtypes(self._plan.params, names),
            "loss_scale": isinstance(stats.inv_scale, Tensor) or stats.inv_scale != 1.0,
        }
        if not self._policies:
            facts["graph"] = {}
            facts["parts"] = list(self._parts)
        return facts


def modules_of(models: Mapping[str, torch.nn.Module]) -> dict[str, str]:
    """The kind of each module by its canonical name, which begins with the part's; "" is a model itself."""
    found: dict[str, str] = {}
    for part, model in models.items():
        for name, kind in module_kinds(model).items():
            found[".".join(filter(None, (part, name)))] = kind
    return found


def module_kinds(model: torch.nn.Module) -> dict[str, str]:
    """The kind of each module by its canonical name; "" is the model itself."""
    found = list(model.named_modules())[:MOST_MODULES]
    names = canonical_names([name for name, _ in found])
    return {name: type(module).__name__ for name, (_, module) in zip(names, found)}


def _groups_of(name: str, optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> list[dict[str, Any]]:
    """The numbers and texts of each parameter group: rates, betas, eps, …"""
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
    """A number, a text or a short list of them; None for anything else. No synchronisation."""
    if isinstance(value, Tensor):
        return value.item() if value.is_cpu and value.numel() == 1 else None
    if isinstance(value, (list, tuple)):
        return [_as_plain(entry) for entry in value[:16]]
    return value if isinstance(value, (bool, int, float, str)) else None


def _gradient_dtypes(params: Sequence[Tensor], names: Mapping[int, str]) -> dict[str, Any]:
    """Names of parameters by the dtype of their gradients; "all" where there is only one."""
    found: dict[str, list[str]] = {}
    for param in params:
        if param.grad is not None:
            found.setdefault(str(param.grad.dtype), []).append(names[id(param)])
    if len(found) == 1:
        return dict.fromkeys(found, "all")
    return dict(found)
