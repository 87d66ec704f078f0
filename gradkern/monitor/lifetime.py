"""Close monitors when the program ends, and stop them in forked processes."""

from __future__ import annotations

import atexit
import os
import weakref
from typing import Protocol


class Ending(Protocol):
    """An object that is closed when the program ends, and informed of forks."""

    def close(self) -> None: ...
    def forked(self) -> None: ...


_open: weakref.WeakSet[Ending] = weakref.WeakSet()


def follow(monitor: Ending) -> None:
    """Close `monitor` when the program ends, and tell it when it is in a forked process.

    This is cheaper than a comparison of process ids, which would be a system call at every step.
    """
    _open.add(monitor)
    reference = weakref.ref(monitor)

    def close() -> None:
        alive = reference()
        if alive is not None:
            alive.close()

    atexit.register(close)
    weakref.finalize(monitor, atexit.unregister, close)


def _tell_forked() -> None:
    for monitor in list(_open):
        monitor.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tell_forked)
