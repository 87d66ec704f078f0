"""Names of parameters and layers."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

#: Components that wrappers add to names: torch.compile, FSDP, activation checkpointing.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")


def as_index(value: Any) -> int:
    """`value` as an int if it is an integer of any type, else -1."""
    try:
        return -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return -1


def canonical_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names without the components that wrappers add.

    `_orig_mod.` and the like are removed wherever they occur, `module.` (DataParallel, DDP) only if every
    name starts with it. If two names would become equal, none is changed.
    """
    text = "\n".join(names)  # one search for all names
    if not (text.startswith("module.") or any(wrapper in text for wrapper in _WRAPPERS)):
        return tuple(names)
    stripped = [".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in names]
    while stripped and all(name.startswith("module.") for name in stripped):
        stripped = [name[len("module.") :] for name in stripped]
    return tuple(stripped if len(set(stripped)) == len(set(names)) else names)


def distinct(names: Sequence[str]) -> list[str]:
    """Names made unique: the second "weight" becomes "weight (2)"."""
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
    """Validate a depth: the number of components of a module's name to keep, or None for all.

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

    Tensors of a parametrization belong to the module that is parametrized:
    "0.parametrizations.weight.original0" → "0". With `depth`, at most that many leading components are kept.
    A parameter of the root module belongs to "(root)".
    """
    owner = f".{name}".partition(".parametrizations.")[0][1:]
    if len(owner) == len(name):
        owner = name.rpartition(".")[0]
    if depth is not None:
        owner = ".".join(owner.split(".")[:depth])
    return owner or "(root)"


def common_prefix(names: Sequence[str]) -> str:
    """The leading components that all names share, for example "base_model.model."; empty if there are none.

    Each name keeps the module that owns it, and a number keeps the component before it ("layers.0").
    """
    paths = [name.split(".")[:-2] for name in names]
    if not paths:
        return ""
    first, last = min(paths), max(paths)  # all names share what these two share
    count = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))
    while count and any(name.split(".")[count].isdecimal() for name in names):
        count -= 1
    return "".join(f"{part}." for part in first[:count])
