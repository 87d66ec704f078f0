"""The category of gradkern's warnings, and its logger."""

from __future__ import annotations

import logging
import sys
import warnings
from types import FrameType

#: ``logging.getLogger("gradkern")``, which receives every warning too. It prints nothing unless the program
#: configures logging.
LOGGER = logging.getLogger("gradkern")
LOGGER.addHandler(logging.NullHandler())

#: Packages whose lines do not help the user: a warning points to the first caller outside of them.
_INNER = {"gradkern", "torch", "importlib"}


class GradkernWarning(UserWarning):
    """The category of all warnings of gradkern, which are about likely mistakes.

    Every message says what to do. Warnings are also logged to ``logging.getLogger("gradkern")``.

    Example:
        >>> warnings.filterwarnings("error", category=gradkern.GradkernWarning)
    """

    __module__ = "gradkern"


def warn(message: str) -> None:
    """Issue a `GradkernWarning` at the line that called gradkern, and log it."""
    LOGGER.warning(message)
    frame = sys._getframe()
    while frame.f_back is not None and _room(frame) in _INNER:
        frame = frame.f_back
    warnings.warn_explicit(
        message,
        GradkernWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        frame.f_globals.get("__name__"),
        frame.f_globals.setdefault("__warningregistry__", {}),
    )


def _room(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
