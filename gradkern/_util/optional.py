"""Imports of optional packages."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def need(module: str, package: str, extra: str, who: str) -> Any:
    """Import a module of an optional package.

    Raises:
        ImportError: it is not installed. The message names the extra to install.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"[{who}] needs the package {package}, which is not installed: pip install gradkern[{extra}] "
            f"({error})"
        ) from error
