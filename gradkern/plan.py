"""The parameters a long-lived object watches, and whether they are still the same ones."""

from __future__ import annotations

from operator import getitem
from typing import Any

from torch import Tensor, nn

from gradkern.measure import first_rows
from gradkern.names import NamedParameters, resolve


class ParameterPlan:
    """Names, parameters and host-side metadata, built once.

    A Module is looked at again only if its parameters changed (replaced, added, removed), which
    `current` finds out without walking it. Any other iterable is fixed at construction.
    """

    def __init__(self, operation: str, params: NamedParameters) -> None:
        self._operation = operation
        self._module = params if isinstance(params, nn.Module) else None
        self._build(params)

    def _build(self, params: NamedParameters) -> None:
        self.names, self.params = resolve(self._operation, params)
        self.numel = tuple(p.numel() for p in self.params)
        self.first = first_rows(self.params)
        if self._module is None:
            return
        # Kept alive, so that no module put in another's place can be given its id.
        self._modules = list(self._module.modules())
        self._owners: list[dict[str, Any]] = [m._parameters for m in self._modules]
        self._children: list[dict[str, Any]] = [m._modules for m in self._modules]
        self._dicts = [owner for owner in self._owners for _ in owner]
        self._keys = [key for owner in self._owners for key in owner]
        self._fingerprint = self._look()

    def _look(self) -> tuple[Any, ...]:
        ids = tuple(map(id, map(getitem, self._dicts, self._keys)))
        children = tuple(id(child) for owner in self._children for child in owner.values())
        return sum(map(len, self._owners)), children, ids

    def current(self) -> list[Tensor]:
        """The parameters as they are now."""
        if self._module is not None:
            try:
                changed = self._look() != self._fingerprint
            except KeyError:  # a parameter was removed
                changed = True
            if changed:
                self._build(self._module)
        return self.params
