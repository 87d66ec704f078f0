"""Monitors that cannot record: closed ones, copies, and those of forked processes."""

from __future__ import annotations

from gradkern._util.warning import warn

CLOSED = "the monitor is closed"
COPY = "it is a copy"
FORKED = "this process was forked from the one that records"


class Usability:
    """Whether a monitor records, and the error or warning if it does not."""

    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        """Why it does not record; "" while it does."""
        self._told = False

    def refuse(self, operation: str = "GradMonitor.record") -> None:
        """Refuse a call of a monitor that does not record.

        Raises:
            RuntimeError: the monitor is closed, or its process was forked.

        Warns:
            GradkernWarning: the monitor is a copy. Once.
        """
        if self.reason != COPY:
            raise RuntimeError(f"[{operation}] cannot record, because {self.reason}; build a new GradMonitor")
        if not self._told:
            self._told = True
            warn(
                f"[{operation}] this monitor is a copy, made when the object that holds it was copied or "
                "pickled. It records nothing, because one file cannot have two writers. Build a GradMonitor "
                "for the copied model if it is trained"
            )
