"""The category of gradkern's warnings, and its logger."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
import weakref
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

#: ``logging.getLogger("gradkern")``, which receives every warning too. It prints nothing unless the program
#: configures logging.
LOGGER = logging.getLogger("gradkern")
LOGGER.addHandler(logging.NullHandler())

#: Packages whose lines never help the user.
_INNER = {"gradkern", "torch", "importlib"}
_STANDARD_LIBRARY = os.path.dirname(os.__file__) + os.sep
_started = threading.local()


class GradkernWarning(UserWarning):
    """The category of all warnings of gradkern, which are about likely mistakes.

    Every message says what to do. Warnings are also logged to ``logging.getLogger("gradkern")``.

    Examples:
        >>> warnings.filterwarnings("error", category=gradkern.GradkernWarning)
    """

    __module__ = "gradkern"


@dataclass(frozen=True)
class Line:
    """A line of a program that a warning points to, with what `warnings` keeps of its module."""

    file: str
    number: int
    module: str | None
    registry: dict[Any, Any]


class Listener(Protocol):
    """An object that is told of warnings: the recording of a run."""

    def warned(self, message: str) -> None: ...


#: Those that are told of each `GradkernWarning`. A forked process begins without.
LISTENERS: weakref.WeakSet[Listener] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=LISTENERS.clear)


def warn(message: str, category: type[Warning] = GradkernWarning, *, told: bool = True) -> None:
    """Issue a warning at the line of the user's program that led to it, and log it.

    Args:
        told: whether `LISTENERS` are told, which other warnings than a `GradkernWarning` never are.
    """
    LOGGER.warning(message)
    if told and category is GradkernWarning:
        for listener in list(LISTENERS):
            listener.warned(message)
    line = users_line()
    warnings.warn_explicit(message, category, line.file, line.number, line.module, line.registry)


def users_line() -> Line:
    """The innermost line of the stack that is not of an installed package or the standard library.

    If there is none: the line that `point_to` has named for this thread, or else the innermost line outside
    of gradkern and torch.
    """
    frame: FrameType | None = sys._getframe()
    outside = None
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] not in _INNER:
            outside = outside or frame
            if not _is_installed(frame.f_code.co_filename):
                return _line_of(frame)
        last, frame = frame, frame.f_back
    named: Line | None = getattr(_started, "line", None)
    return named or _line_of(outside or last)


def point_to(line: Line) -> None:
    """Let warnings of this thread, whose stack does not have the user's program, point to a line of it."""
    _started.line = line


def _is_installed(file: str) -> bool:
    packages = f"{os.sep}site-packages{os.sep}" in file or f"{os.sep}dist-packages{os.sep}" in file
    return packages or file.startswith((_STANDARD_LIBRARY, "<frozen "))


def _line_of(frame: FrameType) -> Line:
    module = frame.f_globals.get("__name__")
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    return Line(frame.f_code.co_filename, frame.f_lineno, module, registry)
