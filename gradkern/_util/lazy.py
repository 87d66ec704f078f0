"""Lazy imports: names of a package that are imported on first use."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from gradkern._util import moved


def attach(
    package: str,
    homes: Mapping[str, str],
    submodules: Sequence[str] = (),
    elsewhere: Mapping[str, Sequence[str]] | None = None,
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make `__getattr__` and `__dir__` for a package.

    Assign them under ``if not TYPE_CHECKING:``, because a type checker would accept any name otherwise. List
    the imports under ``if TYPE_CHECKING:``.

    Args:
        package: its ``__name__``.
        homes: the module that defines each name.
        submodules: submodules that are imported on first use.
        elsewhere: names of submodules that are looked for in the package; the error tells where they are.
    """

    def get(name: str) -> Any:
        if name in submodules:
            return import_module(f"{package}.{name}")
        if name in homes:
            found = getattr(import_module(homes[name]), name)
            setattr(sys.modules[package], name, found)  # found without this function from now on
            return found
        if f"{package}.{name}" in moved.MOVED:
            return moved.forward(package)(name)
        hint = "".join(
            f"; use {package}.{home}.{name}" for home, own in (elsewhere or {}).items() if name in own
        )
        error = f"module {package!r} has no attribute {name!r}{hint}"
        raise AttributeError(error, name=name, obj=sys.modules[package])  # so that Python can suggest a name

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes, *submodules})

    return get, names
