"""Recording gradient statistics of a training run, and reading them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradkern import _lazy
from gradkern.monitor.history import History
from gradkern.monitor.store import HistoryError

if TYPE_CHECKING:
    from gradkern.monitor.monitor import GradMonitor
else:  # looking at a run needs no more than reading it
    __getattr__, __dir__ = _lazy.attach(__name__, {"GradMonitor": "gradkern.monitor.monitor"})

__all__ = ["GradMonitor", "History", "HistoryError"]
