"""The named groups of `GradClipper(groups=...)`: which parameters belong to which group."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from gradkern.params.arguments import unwrap_optimizer

Selector = str | Callable[[str, Tensor], bool] | torch.optim.Optimizer | nn.Module | Iterable[Tensor]
"""A glob over names; a function of name and parameter; an optimizer; a module; or parameters."""


def members_of(
    selectors: Mapping[str, Any], names: Sequence[str], params: Sequence[Tensor], may_be_empty: bool
) -> dict[str, list[int]]:
    """The rows of each group. A parameter is in the group of the first selector that matches. If it is listed
    twice, both rows are in the group of the first.

    Args:
        selectors: the selector of each group, by name.
        may_be_empty: whether a group may have no parameters, because other ranks have them.

    Raises:
        TypeError: a selector is of no known kind.
        ValueError: a group has no parameters, or a parameter is in no group.
    """
    tests = {group: _test_of(group, selector) for group, selector in selectors.items()}
    members: dict[str, list[int]] = {group: [] for group in selectors}
    chosen: dict[int, str] = {}
    left_out: str | None = None
    for row, (name, param) in enumerate(zip(names, params)):
        group = chosen.get(id(param)) or next((g for g, test in tests.items() if test(name, param)), None)
        if group is None:
            left_out = left_out or name
            continue
        chosen[id(param)] = group
        members[group].append(row)
    empty = next((group for group, rows in members.items() if not rows), None)
    if empty is not None and not may_be_empty:  # first: a misspelt selector leaves parameters out as well
        taken = any(tests[empty](name, param) for name, param in zip(names, params))
        why = "groups before it have all its parameters" if taken else _no_match(selectors[empty], names)
        raise ValueError(f"[GradClipper] groups['{empty}']: has no parameters, because {why}")
    if left_out is not None:
        raise ValueError(
            f"[GradClipper] groups: no selector of {_listed(selectors)} matches '{left_out}', but every "
            "parameter must be in a group; add a last group ('*', policy), or ('*', None) to only measure"
        )
    return members


def _no_match(selector: Any, names: Sequence[str]) -> str:
    """That a selector matches nothing, in words; of a glob with the most similar names or globs."""
    if not isinstance(selector, str):
        return "its selector matches no parameter"
    modules = {name[:end] for name in names for end, letter in enumerate(name) if letter == "."}
    similar = get_close_matches(selector, [*names, *(f"{module}.*" for module in sorted(modules))], 3, 0.5)
    hint = (
        f"similar are {', '.join(map(repr, similar))}"
        if similar
        else f"names are like '{next(iter(names), '')}'"
    )
    return f"its selector '{selector}' matches no name; {hint}"


def _listed(selectors: Mapping[str, Any]) -> str:
    return ", ".join(f"'{group}'" for group in selectors)


def _test_of(group: str, selector: Any) -> Callable[[str, Tensor], bool]:
    if isinstance(selector, str):
        return lambda name, _: fnmatchcase(name, selector)
    if isinstance(selector, nn.Module):
        selector = list(selector.parameters())
    elif isinstance(selector, torch.optim.Optimizer):
        selector = [p for g in unwrap_optimizer(selector).param_groups for p in g["params"]]
    elif callable(selector):
        _check_call(group, selector)
        return lambda name, param: bool(selector(name, param))
    elif isinstance(selector, Tensor):
        selector = [selector]
    try:
        listed = list(selector)
    except TypeError:
        listed = [None]
    if not all(isinstance(p, Tensor) for p in listed):
        raise TypeError(
            f"[GradClipper] groups['{group}']: expected a glob over names, a function of name and parameter, "
            f"an optimizer, a module or parameters, got {type(selector).__name__}"
        )
    identities = {id(p) for p in listed}
    return lambda _, param: id(param) in identities


def _check_call(group: str, selector: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(selector)
    except (TypeError, ValueError):  # some built-in functions have none
        return
    try:
        signature.bind("name", "parameter")
    except TypeError as error:
        raise TypeError(
            f"[GradClipper] groups['{group}']: the selector is called with (name, parameter), got a function "
            f"of {signature}: {error}"
        ) from error
