"""Parameters and their canonical names."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from gradkern._util.names import canonical_names
from gradkern.kernels.backend import C
from gradkern.params.arguments import is_fresh, warn_of_nothing

NamedParameters = nn.Module | Iterable[tuple[str, Tensor]] | Iterable[Tensor] | Tensor


def resolve(operation: str, params: NamedParameters) -> tuple[tuple[str, ...], list[Tensor]]:
    """Names and parameters of a Module, of (name, Parameter) pairs or of Parameters.

    Parameters without names are called "0", "1", ….

    Raises:
        TypeError: an entry is neither a Tensor nor a (name, Tensor) pair. The message gives its index.

    Warns:
        GradkernWarning: an iterator yields nothing.
    """
    if isinstance(params, nn.Module):
        params = list(params.named_parameters())
    elif isinstance(params, torch.Tensor):
        params = [params]
    fresh = is_fresh(params)
    try:
        items = list(params)
    except TypeError as error:
        raise TypeError(
            f"[{operation}] params: expected a Module, Parameters or (name, Parameter) pairs, got "
            f"{type(params).__name__}"
        ) from error
    if not items:
        warn_of_nothing(operation, "params", params, fresh)
    if C.are_tensors(items) or all(issubclass(kind, torch.Tensor) for kind in set(map(type, items))):
        return _numbers(len(items)), items
    names: list[str] = []
    tensors: list[Tensor] = []
    for index, item in enumerate(items):
        name, tensor = item if isinstance(item, tuple) and len(item) == 2 else (str(index), item)
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"[{operation}] params[{index}]: expected a Parameter or a (name, Parameter) pair, got "
                f"{type(item).__name__}"
            )
        names.append(name)
        tensors.append(tensor)
    return canonical_names(names), tensors


def identify(tensors: Sequence[Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """`id` of each parameter, and for each the position where it is listed first."""
    known = C.identities(tensors)
    if known is not None and known[1]:  # all different
        return known[0], _positions(len(tensors))
    identities = tuple(map(id, tensors))
    return identities, first_rows(identities)


def first_rows(identities: Sequence[int]) -> tuple[int, ...]:
    """For each parameter, the position where it is listed first."""
    if len(set(identities)) == len(identities):
        return _positions(len(identities))
    seen: dict[int, int] = {}
    return tuple(seen.setdefault(identity, row) for row, identity in enumerate(identities))


# Kept for lists that are measured again and again: each may be thousands of Python objects.


@functools.lru_cache(maxsize=8)
def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


@functools.lru_cache(maxsize=8)
def _positions(count: int) -> tuple[int, ...]:
    return tuple(range(count))


def elements_of(param: Tensor) -> int:
    """``param.numel()``, or 0 for a lazy parameter that has no shape yet."""
    return 0 if torch.nn.parameter.is_lazy(param) else param.numel()
