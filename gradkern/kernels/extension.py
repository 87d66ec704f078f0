"""Loads the compiled extension, or says what to do when it cannot be loaded."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from gradkern._util.warning import warn
from gradkern.version import __version__

REBUILD = (
    "pip install --no-build-isolation --force-reinstall --no-deps PATH_TO_CHECKOUT (or there: make -B build)"
)

#: `GRADKERN_DISABLE=1` sends every call to torch's own operations.
DISABLED = os.environ.get("GRADKERN_DISABLE", "0") not in ("", "0")

#: `GRADKERN_VERIFY=1` compares every call with float64.
VERIFY = os.environ.get("GRADKERN_VERIFY", "0") not in ("", "0")


def load_extension() -> ModuleType:
    """Import `gradkern._C`.

    The check comes before the import: an extension built for another torch can crash the process
    instead of failing.

    Raises:
        ImportError: the extension is missing or was built for another torch; names the command
            that rebuilds it.
    """
    record = Path(__file__).parent.with_name("_built_for_torch.txt")
    if not record.exists():
        raise _unusable(f"gradkern's compiled extension is missing from {record.parent}. Build it: {REBUILD}")
    built_for = record.read_text(encoding="utf-8").strip()
    if built_for != torch.__version__:
        raise _unusable(
            f"gradkern was built for torch {built_for}, and torch {torch.__version__} is installed: "
            f"compiled extensions fit one version only. Rebuild it: {REBUILD}"
        )
    try:
        from gradkern import _C
    except ImportError as error:
        raise _unusable(
            f"gradkern's compiled extension does not load: {error}. Rebuild it: {REBUILD}"
        ) from error
    return _C


def _unusable(reason: str) -> ImportError:
    """By its name the command line knows it, and prints the reason without a traceback."""
    return ImportError(reason, name="gradkern")


def _load_unless_disabled() -> Any:
    try:
        return load_extension()
    except ImportError as missing:
        if not DISABLED:
            raise
        # Nothing is computed with it; a machine where it does not load can go on with torch.
        warn(f"GRADKERN_DISABLE=1, and {missing}")
        return None


#: The compiled module; None where it does not load and ``GRADKERN_DISABLE=1``.
EXTENSION = _load_unless_disabled()


def build_info() -> dict[str, str]:
    """What is installed and what it was built from.

    Returns:
        version, torch (built for), compiler, the CPU instruction sets compiled and the one in use,
        the CUDA version and architectures ("" without CUDA kernels).
    """
    return {"version": __version__, **({} if EXTENSION is None else EXTENSION.build_info())}
