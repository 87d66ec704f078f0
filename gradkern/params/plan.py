"""The parameters a long-lived object watches, and whether they are still the same ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from gradkern.kernels.backend import C
from gradkern.params.names import NamedParameters, elements_of, first_rows, resolve


class ParameterPlan:
    """Names, parameters and host-side metadata, built once.

    A Module is walked again only if its parameters changed (replaced, added, removed); finding out
    costs a few nanoseconds a parameter (microseconds where a Module keeps them in something other
    than a dict, as a ScriptModule does). Any other iterable is fixed at construction.
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
        owners = [owner for m in modules for owner in _containers(m)]
        held = [(owner, tuple(chain.from_iterable(owner.items()))) for owner in owners]
        self._dicts: list[tuple[Any, tuple[Any, ...]]] = [
            (owner, items) for owner, items in held if type(owner) in _DICTS
        ]
        self._others = [(owner, items) for owner, items in held if type(owner) not in _DICTS]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy, made with the model it is of (a pickle has ids of nothing)."""
        self.__dict__.update(state)
        self.identities = tuple(map(id, self.params))

    def current(self) -> list[Tensor]:
        """The parameters as they are now."""
        if self._module is not None and not (C.dicts_unchanged(self._dicts) and _same(self._others)):
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


_DICTS = frozenset({dict, OrderedDict})


def _containers(module: nn.Module) -> Iterator[Mapping[str, Any]]:
    """What holds a module's parameters and submodules, as far as it can change."""
    if not isinstance(module, torch.jit.ScriptModule):
        yield from (module._parameters, module._modules)
    elif module._parameters:  # its parameters can be replaced, its structure is compiled
        yield module._parameters


def _same(owners: Sequence[tuple[Mapping[str, Any], tuple[Any, ...]]]) -> bool:
    """Whether every mapping still holds the very same objects.

    Names are compared by value, since some mappings make them anew each time.
    """
    for owner, before in owners:
        items = tuple(chain.from_iterable(owner.items()))
        if items[::2] != before[::2] or [*map(id, items[1::2])] != [*map(id, before[1::2])]:
            return False
    return True
