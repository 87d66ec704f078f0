"""`JointPlan`: the parameters of several models as one list, named "<model>.<parameter>"."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

from torch import Tensor

from gradkern.params.names import first_rows
from gradkern.params.plan import ParameterPlan


class JointPlan:
    """As `ParameterPlan`, over several of them."""

    def __init__(self, plans: Mapping[str, ParameterPlan]) -> None:
        self._plans = dict(plans)
        self._of: list[Any] = []
        self.current()

    def current(self) -> list[Tensor]:
        """The parameters as they are now."""
        lists = [plan.current() for plan in self._plans.values()]
        of = [plan.identities for plan in self._plans.values()]
        if len(of) != len(self._of) or any(now is not then for now, then in zip(of, self._of)):
            self._of = of
            self.params = list(chain.from_iterable(lists))
            self.identities: tuple[int, ...] = tuple(chain.from_iterable(of))
            self.names = tuple(f"{name}.{n}" for name, plan in self._plans.items() for n in plan.names)
            self.first = first_rows(self.identities)
            self.numel: tuple[int, ...] = ()
        self.sizes()
        return self.params

    def sizes(self) -> tuple[int, ...]:
        """Elements of each parameter; the same object while nothing changes."""
        numel = tuple(chain.from_iterable(plan.sizes() for plan in self._plans.values()))
        if numel != self.numel:
            self.numel = numel
        return self.numel
