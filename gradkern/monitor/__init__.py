"""Recording gradient statistics of a training run, and reading them."""

from gradkern.monitor.history import History
from gradkern.monitor.store import HistoryError

__all__ = ["History", "HistoryError"]
