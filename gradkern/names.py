"""Parameters: their canonical names, and which of them are listed again."""

from __future__ import annotations

import types
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradkern._arguments import as_index

#: What wrappers put into names: torch.compile, FSDP, activation checkpointing.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")

NamedParameters = nn.Module | Iterable[tuple[str, Tensor]] | Iterable[Tensor] | Tensor


def canonical_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names without what wrappers add to them.

    `_orig_mod.` and the like go wherever they stand; `module.` (DataParallel, DDP) only where every
    name starts with it. If two names became one, all stay as they are.
    """
    text = "\n".join(names)  # one search instead of one a name
    if not (text.startswith("module.") or any(wrapper in text for wrapper in _WRAPPERS)):
        return tuple(names)
    stripped = [".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in names]
    while stripped and all(name.startswith("module.") for name in stripped):
        stripped = [name[len("module.") :] for name in stripped]
    return tuple(stripped if len(set(stripped)) == len(set(names)) else names)


def distinct(names: Sequence[str]) -> list[str]:
    """The names, where one comes again with the number of its occurrence: "weight (2)"."""
    seen: dict[str, int] = {}
    result: list[str] = []
    for name in names:
        candidate = name
        while candidate in seen:
            seen[name] += 1
            candidate = f"{name} ({seen[name]})"
        seen[candidate] = 1
        result.append(candidate)
    return result


def as_depth(operation: str, depth: Any) -> int | None:
    """How many components of a module's name are kept; None for all.

    Raises:
        ValueError: neither None nor an integer of at least 0.
    """
    if depth is None:
        return None
    number = as_index(depth)
    if number < 0:
        raise ValueError(f"[{operation}] depth: expected None or an integer of at least 0, got {depth!r}")
    return number


def layer_of(name: str, depth: int | None = None) -> str:
    """The module that owns a parameter: "blocks.1.attn.weight" → "blocks.1.attn".

    With `depth`, at most that many leading components. A parameter of the root module itself
    belongs to "(root)".
    """
    owner = name.rpartition(".")[0]
    if depth is not None:
        owner = ".".join(owner.split(".")[:depth])
    return owner or "(root)"


def resolve(operation: str, params: NamedParameters) -> tuple[tuple[str, ...], list[Tensor]]:
    """Names and parameters of a Module, of (name, Parameter) pairs or of plain Parameters.

    Plain parameters are called "0", "1", ….

    Raises:
        TypeError: an entry is neither a Tensor nor a (name, Tensor) pair; names its index.

    Warns:
        UserWarning: a generator yields nothing, most likely because it was used up before.
    """
    if isinstance(params, nn.Module):
        params = list(params.named_parameters())
    elif isinstance(params, torch.Tensor):
        params = [params]
    try:
        items = list(params)
    except TypeError as error:
        raise TypeError(
            f"[{operation}] params: expected a Module, Parameters or (name, Parameter) pairs, got "
            f"{type(params).__name__}"
        ) from error
    if not items and isinstance(params, types.GeneratorType):
        warnings.warn(f"[{operation}] params: an empty generator, used up before?", stacklevel=3)
    if all(issubclass(kind, torch.Tensor) for kind in set(map(type, items))):
        return tuple(map(str, range(len(items)))), items
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


def first_rows(identities: Sequence[int]) -> tuple[int, ...]:
    """For each position, the first position of the same parameter."""
    if len(set(identities)) == len(identities):
        return tuple(range(len(identities)))
    seen: dict[int, int] = {}
    return tuple(seen.setdefault(identity, row) for row, identity in enumerate(identities))


def elements_of(param: Tensor) -> int:
    """`param.numel()`; 0 for a lazy parameter that has no shape yet."""
    return 0 if torch.nn.parameter.is_lazy(param) else param.numel()
