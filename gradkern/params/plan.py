"""`ParameterPlan`: the parameters of a clipper or a monitor, kept from step to step."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from gradkern.kernels.backend import C
from gradkern.params.names import NamedParameters, elements_of, identify, resolve


class ParameterPlan:
    """Names, parameters and their metadata, built once.

    A Module is walked again only after parameters were added, removed or replaced. The check costs a few
    nanoseconds per parameter, or microseconds if the Module does not keep them in a dict (a ScriptModule,
    for example). Any other iterable is read once, at construction.
    """

    def __init__(self, operation: str, params: NamedParameters) -> None:
        self._operation = operation
        self._module = params if isinstance(params, nn.Module) else None
        self._build(params)

    def _build(self, params: NamedParameters) -> None:
        self.names, self.params = resolve(self._operation, params)
        self.numel = self._measured = tuple(map(elements_of, self.params))
        self.identities, self.first = identify(self.params)
        modules = () if self._module is None else tuple(self._module.modules())
        owners = [owner for m in modules for owner in _containers(m)]
        held = [(owner, tuple(chain.from_iterable(owner.items()))) for owner in owners]
        self._dicts: list[tuple[Any, tuple[Any, ...]]] = [
            (owner, items) for owner, items in held if type(owner) in _DICTS
        ]
        self._others = [(owner, items) for owner, items in held if type(owner) not in _DICTS]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy. Its parameters are copies too, with ids of their own."""
        self.__dict__.update(state)
        self.identities = tuple(map(id, self.params))

    def current(self) -> list[Tensor]:
        """The parameters as they are now."""
        if self._module is not None and not (C.dicts_unchanged(self._dicts) and _same(self._others)):
            self._build(self._module)
        return self.params

    def sizes(self, measured: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """Elements of each parameter now; ``param.data`` may have been replaced, or a lazy parameter may have
        got its shape.

        Args:
            measured: the sizes, if they are known already.

        Returns:
            The same tuple object as before while nothing changes, so that comparing is cheap.
        """
        numel = tuple(map(elements_of, self.params)) if measured is None else measured
        if numel is not self._measured:
            self._measured = numel
            if numel != self.numel:
                self.numel = numel
        return self.numel


_DICTS = frozenset({dict, OrderedDict})


def _containers(module: nn.Module) -> Iterator[Mapping[str, Any]]:
    """The mappings that hold a module's parameters and submodules, if they can change."""
    if not isinstance(module, torch.jit.ScriptModule):
        yield from (module._parameters, module._modules)
    elif module._parameters:  # a ScriptModule's parameters can be replaced, but not its submodules
        yield module._parameters


def _same(owners: Sequence[tuple[Mapping[str, Any], tuple[Any, ...]]]) -> bool:
    """Whether every mapping still holds the same objects under equal names.

    Names are compared by value because some mappings create them at each call.
    """
    for owner, before in owners:
        items = tuple(chain.from_iterable(owner.items()))
        if items[::2] != before[::2] or [*map(id, items[1::2])] != [*map(id, before[1::2])]:
            return False
    return True
