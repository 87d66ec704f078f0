"""The models of a run: one, or several by name, which are then the parts of each step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradkern.monitor.models.combine import combined
from gradkern.monitor.models.joint_plan import JointPlan
from gradkern.monitor.models.layouts import Layouts, Plan
from gradkern.monitor.models.optimizers import Optimizers, takes_hooks
from gradkern.monitor.models.pending import PendingStep
from gradkern.params.names import NamedParameters
from gradkern.params.plan import ParameterPlan
from gradkern.params.stats import GradStats

Complete = Callable[[PendingStep], None]


class Part:
    """A model with its optimizers.

    Args:
        name: "" for the only model of a run, and for all models together.
        plan: its parameters.
        modules: the modules that own the parameters, whose classes are recorded.
        optimizers: those that step its parameters; those that take hooks are listened to.
        every: all optimizers of the run, in order: they number the parameter groups.
        complete: see `PendingStep`.
    """

    def __init__(
        self,
        name: str,
        plan: Plan,
        modules: Sequence[torch.nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        every: Sequence[torch.optim.Optimizer],
        complete: Complete,
    ) -> None:
        self.name, self.plan = name, plan
        self.optimizers = tuple(one for one in optimizers if takes_hooks(one))
        self.layouts = Layouts(plan, modules, every, f"{name}." if name else "")
        self.pending = PendingStep(self.optimizers, complete)


class Parts:
    """All models of a run.

    Args:
        model: one model, or several by name.
        optimizers: by name.
        complete: see `PendingStep`.

    Raises:
        TypeError, ValueError: see `ParameterPlan`; or an optimizer belongs to none of several models.
    """

    def __init__(self, model: Any, optimizers: Optimizers, complete: Complete) -> None:
        models = _by_name(model)
        plans = {
            name: ParameterPlan(f"GradMonitor: model[{name!r}]" if name else "GradMonitor", one)
            for name, one in models.items()
        }
        self.modules = {name: one for name, one in models.items() if isinstance(one, torch.nn.Module)}
        every = tuple(optimizers.values())
        owned = _owned(plans, optimizers) if len(models) > 1 else dict.fromkeys(models, every)

        def part(name: str) -> Part:
            modules = [self.modules[name]] if name in self.modules else []
            return Part(name, plans[name], modules, owned[name], every, complete)

        self.each = tuple(part(name) for name in models)
        """The models; of a single one its name is ""."""
        self.whole = self.each[0]
        """All of them as one."""
        if self.names:
            joint = JointPlan(plans)
            self.whole = Part("", joint, list(self.modules.values()), every, every, complete)
        self._owners: tuple[tuple[int, ...], Part] = ((), self.whole)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts; empty where there is one model."""
        return tuple(part.name for part in self.each if part.name)

    def named(self, name: Any) -> Part:
        """A part by its name.

        Raises:
            ValueError: there is none of that name.
        """
        for part in self.each:
            if part.name == name and name:
                return part
        if not self.names:
            raise ValueError(
                f"[GradMonitor.record] part: {name!r} was given to a monitor of one model; build it with "
                "GradMonitor({name: model, …}) to record parts"
            )
        raise ValueError(
            f"[GradMonitor.record] part: expected one of {', '.join(map(repr, self.names))}, got {name!r}"
        )

    def of(self, stats: GradStats | None) -> Part:
        """The part that statistics are of, or the whole if they are of several models.

        Without statistics: the only part that holds clips made by others, else the whole.
        """
        if not self.names:
            return self.whole
        if stats is None:
            holding = [part for part in self.each if part.pending]
            return holding[0] if len(holding) == 1 and not self.whole.pending else self.whole
        identities = stats._identities
        if identities is not self._owners[0]:
            wanted = set(identities)
            owners = [part for part in self.each if not wanted.isdisjoint(_identities(part.plan))]
            self._owners = identities, owners[0] if len(owners) == 1 else self.whole
        return self._owners[1]

    def members(self, part: Part) -> tuple[Part, ...]:
        """The models of a part: itself, or all."""
        return self.each if part is self.whole else (part,)

    def pending(self) -> Iterable[Part]:
        """The models with clips by other code that are not recorded yet."""
        return [part for part in dict.fromkeys((*self.each, self.whole)) if part.pending]

    def take_pending(self, part: Part) -> GradStats | None:
        """The statistics that a part holds of clips made by others, the whole those of all models."""
        if not (part is self.whole and self.names):
            return part.pending.take()
        pieces = [one.pending.take() for one in self.pending()]
        return combined([piece for piece in pieces if piece is not None]) if pieces else None

    def drop_pending(self, part: Part) -> None:
        """Forget the clips that a part holds, the whole those of all models."""
        for one in self.pending() if part is self.whole else (part,):
            one.pending.drop()

    def params(self) -> list[Tensor]:
        """All parameters as they are now."""
        return self.whole.plan.current()

    def detach(self) -> None:
        """Stop listening to the optimizers."""
        for part in dict.fromkeys((*self.each, self.whole)):
            part.pending.detach()


def _by_name(model: Any) -> dict[str, NamedParameters]:
    """Several models by name; a single one is named "".

    Raises:
        ValueError: there is no model, or a name is empty.
    """
    if not isinstance(model, Mapping) or isinstance(model, torch.nn.Module):
        return {"": model}
    if not model or not all(isinstance(name, str) and name for name in model):
        raise ValueError(
            f"[GradMonitor] model: expected at least one model by a non-empty name, got {list(model)!r}"
        )
    for name, one in model.items():
        if isinstance(one, Tensor):
            raise TypeError(
                f"[GradMonitor] model[{name!r}]: expected a model, got a tensor; give the parameters of one "
                "model as model.named_parameters()"
            )
    return dict(model)


def _owned(
    plans: Mapping[str, ParameterPlan], optimizers: Optimizers
) -> dict[str, tuple[torch.optim.Optimizer, ...]]:
    """The optimizers of each of several models: that of its name, and those with parameters of it.

    Raises:
        ValueError: an optimizer belongs to none of them.
    """
    owned: dict[str, list[torch.optim.Optimizer]] = {name: [] for name in plans}
    for key, optimizer in optimizers.items():
        ids = {id(p) for group in optimizer.param_groups for p in group["params"]}
        owners = [n for n, plan in plans.items() if ids & set(plan.identities)] or [key] * (key in plans)
        if not owners:
            raise ValueError(
                f"[GradMonitor] optimizer[{key!r}]: has no parameter of any of the models; give optimizers "
                f"by the models' names, {', '.join(map(repr, plans))}"
            )
        for name in owners:
            owned[name].append(optimizer)
    return {name: tuple(found) for name, found in owned.items()}


def _identities(plan: Plan) -> tuple[int, ...]:
    plan.current()
    return plan.identities
