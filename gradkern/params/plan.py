"""The parameters a long-lived object watches, and whether they are still the same ones."""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch import Tensor, nn

from gradkern.kernels.backend import C
from gradkern.params.names import NamedParameters, elements_of, first_rows, resolve


class ParameterPlan:
    """Names, parameters and host-side metadata, built once.

    A Module is walked again only if its parameters changed (replaced, added, removed); finding out
    costs a few nanoseconds a parameter. Any other iterable is fixed at construction.
    """

    def __init__(self, operation: str, params: NamedParameters) -> None:
        self._operation = operation
        self._module = params if isinstance(params, nn.Module) else None
        self._build(params)

    def _build(self, params: NamedParameters) -> None:
        self.names, self.params = resolve(self._operation, params)
        self.numel = tuple(map(elements_of, self.params))
        self.identities = tuple(map(id, self.params))
        self.first = first_rows(self.identities)
        modules = () if self._module is None else tuple(self._module.modules())
        owners: list[dict[str, Any]] = [d for m in modules for d in (m._parameters, m._modules)]
        self._owners = [(owner, tuple(chain.from_iterable(owner.items()))) for owner in owners]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy, made with the model it is of (a pickle has ids of nothing)."""
        self.__dict__.update(state)
        self.identities = tuple(map(id, self.params))

    def current(self) -> list[Tensor]:
        """The parameters as they are now."""
        if self._module is not None and not C.dicts_unchanged(self._owners):
            self._build(self._module)
        return self.params

    def sizes(self, measured: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """`numel` as it is now: ``param.data`` can be replaced, lazy parameters get a shape.

        The tuple stays the same object while nothing changes, so that comparing is cheap.
        """
        numel = tuple(map(elements_of, self.params)) if measured is None else measured
        if numel != self.numel:
            self.numel = numel
        return self.numel
