"""The file of a run and everything that reads it. Needs NumPy and sqlite3, not torch."""

from gradkern.history.facade import History
from gradkern.history.format import HistoryError
from gradkern.history.named import GroupColumns
from gradkern.history.noted import Event
from gradkern.history.summary import Summary

__all__ = ["Event", "GroupColumns", "History", "HistoryError", "Summary"]
