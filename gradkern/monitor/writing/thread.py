"""`WritingThread`: turns captures into rows, after their values have arrived, and writes them to the file."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from gradkern._util.warning import point_to, users_line, warn
from gradkern.history import format
from gradkern.history.facade import History
from gradkern.history.rows import Row, StepRow
from gradkern.history.writer import HistoryWriter
from gradkern.monitor.captures.capture import Capture, Presence
from gradkern.monitor.captures.joiner import parts_of
from gradkern.monitor.checks.all_zero import AllZero
from gradkern.monitor.checks.plateau import Plateau
from gradkern.monitor.events.step import StepEvents
from gradkern.monitor.writing.committer import Committer, Feed
from gradkern.monitor.writing.queue import CaptureQueue
from gradkern.monitor.writing.warned import Warned

#: Seconds between two checks of the queue, by journal mode. A step does not wake the thread, because that
#: would cost the training thread a system call and the GIL.
INTERVAL = {"WAL": 0.2, "TRUNCATE": 1.0}
#: Seconds between two notes about the cost of the monitor itself.
NOTE_EVERY = 2.0


class WritingThread:
    """Turns captures into rows and writes them. `submit` is called by one thread only.

    If captures come faster than they can be written, `submit` waits once, for at most a second. Steps that
    still find no room are dropped and counted in `lost`, with one warning.

    Args:
        folder: folder of the run.
        meta: entries of `History.meta`.
        feed: also gets the committed rows.
        check: see `HistoryWriter`.
        ended: called by the thread after it has written the last row.
    """

    def __init__(
        self,
        folder: Path,
        meta: dict[str, Any],
        feed: Feed,
        *,
        check: Callable[[History], None] = lambda history: None,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._writer = HistoryWriter(folder, {**meta, "closed": None}, check=check)
        self.file = folder / format.DATABASE
        self.last_step = self._writer.last_step
        self.record_seconds: deque[float] = deque(maxlen=100)
        self._feed, self._ended = feed, ended
        try:
            feed.open(folder)
        except BaseException:
            self._writer.close()
            raise
        self._warned = Warned()
        self._built_at = users_line()
        self._wake = threading.Event()
        self._queue = CaptureQueue(self.file, self._wake, self._warned)
        self.committer = Committer(self.file, self._writer, feed, self._warned)
        self._dropped = 0
        self._row_bytes = 0
        self._presence, self._events = Presence(), StepEvents()
        self._watches = Plateau(), AllZero()
        self._noted_at = 0.0
        self._idle = threading.Condition()
        self._flushes_wanted, self._flushes_done = 0, 0
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="gradkern-monitor", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Number of steps that could not be recorded."""
        return self._dropped + self.committer.lost

    # ---- the training thread ----

    def submit(self, capture: Capture) -> None:
        """Hand a capture to the writing thread. Returns at once unless the queue is full."""
        if not self._queue.put(capture):
            self._dropped += capture.is_step
            capture.arriving.wait()
            capture.arriving.release()

    def check_norm_type(self, norm_type: float) -> None:
        """One run has norms of one order: that of its first step.

        Raises:
            ValueError: the run has norms of another order.
        """
        recorded = self.committer.norm_type
        if recorded is not None and recorded != norm_type:
            raise ValueError(
                f"[GradMonitor.record] stats.norm_type: expected {recorded!r} as in {str(self.file)!r}, got "
                f"{norm_type!r}"
            )
        self.committer.norm_type = norm_type

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until everything submitted is committed. False if that takes longer, or cannot be."""
        with self._idle:
            self._flushes_wanted += 1
            target = self._flushes_wanted
            self._wake.set()
            self._idle.wait_for(lambda: self._flushes_done >= target or not self._thread.is_alive(), timeout)
            held = bool(self._queue) or bool(self.committer.rows)
            return self._flushes_done >= target and not held and not self.committer.gone

    def close(self, timeout: float = 60.0) -> None:
        """Write everything that was submitted, and end the thread."""
        self._stop = True
        if threading.current_thread() is self._thread:  # the garbage collector dropped the monitor here
            return  # waking would take a lock that this thread may hold
        self._wake.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._warned.tell(
                "close", f"[GradMonitor] {str(self.file)!r}: still being written after {timeout:.0f} s"
            )

    # ---- the writing thread ----

    def _run(self) -> None:
        point_to(self._built_at)
        try:
            self._write_until_stopped()
            self._finish()
        finally:
            self._ended()

    def _write_until_stopped(self) -> None:
        interval = INTERVAL.get(self._writer.journal, 1.0)
        while not self._stop:
            self._wake.wait(interval)
            self._wake.clear()
            with self._idle:
                target = self._flushes_wanted
            self._drain(wait=target > self._flushes_done)
            if target > self._flushes_done:
                with self._idle:
                    self._flushes_done = target
                    self._idle.notify_all()

    def _finish(self) -> None:
        self.committer.retry_now()
        self._drain(wait=True)
        self.committer.give_up_rest()
        with contextlib.suppress(sqlite3.Error):
            if not self._writer.gone():
                self._note(force=True)
                self._writer.set_meta("closed", time.time())  # missing after a kill
        self._writer.close()
        self._feed.close()

    def _drain(self, wait: bool) -> None:
        """Commit what has arrived; with `wait`, everything submitted."""
        try:
            self._collect(wait)
            self.committer.commit(now=wait)
            if wait and self._queue and not self.committer.rows:  # events that the commit brought about
                self._collect(wait)
                self.committer.commit()
            self._note()
        except Exception as error:  # a bug must be reported, but not end the training
            self._warned.tell("bug", f"[GradMonitor] {str(self.file)!r}: recording failed: {error!r}")

    def _collect(self, wait: bool) -> None:
        while (capture := self._queue.take(wait)) is not None:
            size = capture.nbytes()
            self._row_bytes = max(self._row_bytes, size)
            rows = self._rows_of(capture)
            capture.arriving.release()
            self.committer.add(rows, self._row_bytes, self._queue.limit)

    def _rows_of(self, capture: Capture) -> list[Row]:
        """The row of a capture, and the events of a step."""
        try:
            row = capture.row(self._presence)
            if not isinstance(row, StepRow):
                return [row]
            for message in [watch.add(row) for watch in self._watches]:
                if message:
                    warn(message)
            return [row, *self._events.of(parts_of(capture, row))]
        except Exception as error:  # one row less; the others are not affected
            self.committer.lose(f"step {capture.step} cannot be recorded", error)
            return []

    def _note(self, force: bool = False) -> None:
        """Write the cost of the monitor itself every `NOTE_EVERY` seconds, for `gradkern watch`."""
        now, committer = time.monotonic(), self.committer
        if committer.gone or committer.failing or not committer.written_rows:
            return
        if now < self._noted_at + NOTE_EVERY and not force:
            return
        self._noted_at = now
        self._writer.set_meta(
            "monitor",
            {
                "record_us": round(1e6 * median([*self.record_seconds] or [0.0]), 2),
                "write_us": round(1e6 * committer.written_seconds / committer.written_rows, 2),
                "rows": committer.written_rows,
                "lost": self.lost,
                "waiting": len(self._queue),
            },
        )
