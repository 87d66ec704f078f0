"""Checks of the arguments of policies."""

from __future__ import annotations

from typing import Any

from gradkern.params.arguments import as_number


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
