"""Checks of the arguments of policies."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from gradkern.params.arguments import as_number

Check = Callable[[str, str, Any], Any]
"""Takes the names of the policy and of the setting, and a value; returns the value to keep."""


def within(policy: str, name: str, value: Any, low: float, high: float) -> float:
    """`value` as a number from `low` to `high`.

    Raises:
        TypeError, ValueError: it is not such a number.
    """
    number = as_number(policy, name, value)
    if not low <= number <= high:
        raise ValueError(f"[{policy}] {name}: expected a number from {low:g} to {high:g}, got {number!r}")
    return number


def at_least(policy: str, name: str, value: Any, low: float) -> float:
    """`value` as a number of at least `low`.

    Raises:
        TypeError, ValueError: it is not such a number.
    """
    number = as_number(policy, name, value)
    if number < low:
        raise ValueError(f"[{policy}] {name}: expected a number of at least {low:g}, got {number!r}")
    return number


def whole(policy: str, name: str, value: Any, least: int) -> int:
    """`value` as an integer of at least `least`.

    Raises:
        TypeError, ValueError: it is not such an integer.
    """
    number = as_number(policy, name, value)
    if number < least or not number.is_integer():
        raise ValueError(f"[{policy}] {name}: expected an integer of at least {least}, got {value!r}")
    return int(number)


def one_of(policy: str, name: str, value: Any, choices: Collection[str]) -> str:
    """`value`, which is one of `choices`.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"[{policy}] {name}: expected one of {', '.join(choices)}, got {value!r}")
    return value


def flag(policy: str, name: str, value: Any) -> bool:
    """`value` as a bool."""
    return bool(value)
