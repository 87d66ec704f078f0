"""Recording gradient statistics of a training run, and reading them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradkern.monitor.history import History
from gradkern.monitor.store import HistoryError

if TYPE_CHECKING:
    from gradkern.monitor.monitor import GradMonitor

__all__ = ["GradMonitor", "History", "HistoryError"]


def __getattr__(name: str) -> Any:
    """Looking at a run needs no more than reading it."""
    if name == "GradMonitor":
        from gradkern.monitor.monitor import GradMonitor

        return GradMonitor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
