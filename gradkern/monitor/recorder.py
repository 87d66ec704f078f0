"""The thread that writes: takes captured steps when they have arrived, in batches."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from gradkern._util.warning import warn
from gradkern.history import format
from gradkern.history.rows import Row, StepRow
from gradkern.history.writer import HistoryWriter
from gradkern.monitor.capture import Capture, Presence, StepCapture
from gradkern.monitor.plateau import Plateau

#: How often the thread looks for work, in seconds. It is never woken by a step: that would cost
#: the training thread a system call and a turn at Python's lock.
INTERVAL = {"WAL": 0.2, "TRUNCATE": 1.0}
LIMIT_BYTES = 64 << 20
PATIENCE = 1.0  # the longest that a step waits for a slow disk, once per stall
RETRY = 1.0
RETRY_MOST = 30.0


class Feed(Protocol):
    """Where committed rows go besides the file."""

    def open(self, run_dir: Path) -> None: ...
    def send(self, rows: Sequence[Row]) -> list[str]:
        """Returns what is to be warned of."""
        ...

    def close(self) -> None: ...


class Recorder:
    """Captures in, rows out. `submit` is for one thread; memory is bounded by `limit` bytes.

    When captures come faster than the disk takes them, `submit` waits once, at most `PATIENCE`
    seconds; steps that still find no room are dropped, counted in `lost`, and warned of once.

    Args:
        ended: called when nothing is written any more, in the thread that wrote.
    """

    def __init__(
        self,
        folder: Path,
        meta: dict[str, Any],
        feed: Feed,
        *,
        journal: str | None = None,
        limit: int = LIMIT_BYTES,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._writer = HistoryWriter(folder, {**meta, "closed": None}, journal)
        self.file = folder / format.DATABASE
        self.journal = self._writer.journal
        self.last_step = self._writer.last_step
        self._norm_type = self._noted_type = self._writer.norm_type
        self.lost = 0
        self.record_seconds: deque[float] = deque(maxlen=100)
        self._feed = feed
        try:
            feed.open(folder)
        except BaseException:
            self._writer.close()
            raise
        self._queue: deque[Capture] = deque()
        self._rows: list[Row] = []
        self._row_bytes = 0
        self._queued_bytes = 0
        self._taken_bytes = 0
        self._limit = limit
        self._ended = ended
        self.committed: Callable[[Sequence[Row]], None] = lambda rows: None
        """Called with the rows of each commit, in the thread that writes."""
        self._stalled = False
        self._warned: set[str] = set()
        self._plateau = Plateau()
        self._retry_at, self._retry_after = 0.0, RETRY
        self._written_rows, self._written_seconds, self._noted_at = 0, 0.0, 0.0
        self._wake = threading.Event()
        self._idle = threading.Condition()
        self._flushes_wanted, self._flushes_done = 0, 0
        self._stop = False
        self._presence = Presence()
        self._thread = threading.Thread(target=self._run, name="gradkern-monitor", daemon=True)
        self._thread.start()

    # ---- the training thread ----

    def submit(self, capture: Capture) -> None:
        """Hand over; returns at once unless the queue is full."""
        if self._queued_bytes - self._taken_bytes > self._limit and not self._make_room():
            self.lost += isinstance(capture, StepCapture)
            capture.arriving.wait()
            capture.arriving.release()
            return
        self._queued_bytes += capture.nbytes()
        self._queue.append(capture)

    def check_norm_type(self, norm_type: float) -> None:
        """Orders are not mixed in one run; the first one is noted.

        Raises:
            ValueError: the run was recorded with another one.
        """
        if self._norm_type is not None and self._norm_type != norm_type:
            raise ValueError(
                f"[GradMonitor.record] stats.norm_type: expected {self._norm_type!r} as in "
                f"{str(self.file)!r}, got {norm_type!r}"
            )
        self._norm_type = norm_type

    def _make_room(self) -> bool:
        if not self._stalled:
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                self._wake.set()
                time.sleep(0.005)
                if self._queued_bytes - self._taken_bytes <= self._limit // 2:
                    return True
            self._stalled = True
            self._warn(
                "stall",
                f"[GradMonitor] {str(self.file)!r}: steps come faster than they can be written; those that "
                "find no room are not recorded. Training goes on.",
            )
        if self._queued_bytes - self._taken_bytes <= self._limit // 2:
            self._stalled = False
            return True
        return False

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until everything submitted is committed; False if it took longer or cannot be."""
        with self._idle:
            self._flushes_wanted += 1
            target = self._flushes_wanted
            self._wake.set()
            self._idle.wait_for(lambda: self._flushes_done >= target or not self._thread.is_alive(), timeout)
            written = not self._queue and not self._rows and "gone" not in self._warned
            return self._flushes_done >= target and written

    def close(self, timeout: float = 60.0) -> None:
        """Write what is left and stop."""
        self._stop = True
        if threading.current_thread() is self._thread:  # the collector found the monitor here
            return  # ends with what it is doing; it may hold what `_wake` needs
        self._wake.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._warn(
                "close", f"[GradMonitor] {str(self.file)!r}: still being written after {timeout:.0f} s"
            )

    # ---- the writing thread ----

    def _run(self) -> None:
        try:
            self._write_until_stopped()
            self._finish()
        finally:
            self._ended()

    def _write_until_stopped(self) -> None:
        interval = INTERVAL.get(self.journal, 1.0)
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
        self._retry_at = 0.0
        self._drain(wait=True)
        if self._rows:
            self.lost += _steps_in(self._rows)
            self._warn(
                "lost", f"[GradMonitor] {str(self.file)!r}: {len(self._rows)} rows could not be written"
            )
        with contextlib.suppress(sqlite3.Error):
            if not self._writer.gone():
                self._note(force=True)
                self._writer.set_meta("closed", time.time())  # a killed run never says so
        self._writer.close()
        self._feed.close()

    def _drain(self, wait: bool) -> None:
        """What has arrived becomes rows, rows are committed, sinks get them."""
        try:
            self._collect(wait)
            if self._rows and (wait or time.monotonic() >= self._retry_at):
                self._commit()
            if wait and self._queue and not self._rows:  # events that the commit brought about
                self._collect(wait)
                if self._rows:
                    self._commit()
            self._note()
        except Exception as error:  # a bug here must not end in silence, nor end the training
            self._warn("bug", f"[GradMonitor] {str(self.file)!r}: recording failed: {error!r}")

    def _collect(self, wait: bool) -> None:
        while self._queue:
            capture = self._queue[0]
            if wait:
                capture.arriving.wait()
            elif not capture.arriving.arrived():
                return
            self._queue.popleft()
            size = capture.nbytes()
            self._row_bytes = max(self._row_bytes, size)
            self._taken_bytes += size
            try:
                row = capture.row(self._presence)
                self._rows.append(row)
                if isinstance(row, StepRow):
                    self._tell(self._plateau.add(row))
            except Exception as error:  # the others are not to be lost with it
                self._lose(1, f"step {capture.step} cannot be recorded", error)
            capture.arriving.release()
            if self._retry_at:
                self._trim()
            elif len(self._rows) >= 256:
                self._commit()

    def _tell(self, message: str) -> None:
        if message and message not in self._warned:
            self._warned.add(message)
            warn(message)

    def _lose(self, rows: int, what: str, error: Exception) -> None:
        self.lost += rows
        self._warn("row", f"[GradMonitor] {str(self.file)!r}: {what}: {error!r}. Training goes on.")

    def _trim(self) -> None:
        """While nothing can be written: the newest rows that fit stay."""
        most = max(16, self._limit // max(self._row_bytes, 1))
        excess = len(self._rows) - most
        if excess > 0:
            self.lost += _steps_in(self._rows[:excess])
            del self._rows[:excess]

    def _commit(self) -> None:
        if self._writer.gone():
            self.lost += _steps_in(self._rows)
            self._send(self._rows)
            self._rows.clear()
            self._warn(
                "gone",
                f"[GradMonitor] {str(self.file)!r}: deleted or replaced while it was recorded to: steps from "
                "here on are lost. Training goes on; to record again, close this monitor and make a new one.",
            )
            return
        batch = list(self._rows)
        start = time.perf_counter()
        try:
            self._write(self._rows)
        except sqlite3.Error as error:
            self._retry_at = time.monotonic() + self._retry_after
            self._retry_after = min(2 * self._retry_after, RETRY_MOST)
            reason = format.explain(error, self.file, "GradMonitor")
            self._warn(
                "write",
                f"{reason}. Training goes on; recent steps are kept in memory (at most "
                f"{self._limit >> 20} MiB of them) and writing is tried again.",
            )
        except format.HistoryError as error:
            self._retry_at = time.monotonic() + self._retry_after
            self._warn("write", f"{error}. Training goes on; writing is tried again.")
        else:
            self._retry_at, self._retry_after = 0.0, RETRY
            self._warned.discard("write")
        done = batch[: len(batch) - len(self._rows)]
        self._written_rows += len(done)
        self._written_seconds += time.perf_counter() - start
        self._send(done)
        self.committed(done)

    def _send(self, rows: Sequence[Row]) -> None:
        for message in self._feed.send(rows):
            self._warn(message, message)

    def _write(self, rows: list[Row]) -> None:
        """Rows to the file; what is committed (or can never be) is taken out of the list."""
        if self._noted_type != self._norm_type:
            self._writer.set_meta("norm_type", self._norm_type)
            self._noted_type = self._norm_type
        try:
            self._writer.write(rows)
        except (sqlite3.Error, format.HistoryError):
            raise
        except Exception:  # a row that no file can hold: one at a time, without it
            while rows:
                one = [rows[0]]
                try:
                    self._writer.write(one)
                except (sqlite3.Error, format.HistoryError):
                    raise
                except Exception as error:
                    self._lose(1, f"step {rows[0].step} cannot be recorded", error)
                del rows[0]

    def _note(self, force: bool = False) -> None:
        """What the monitor itself costs, for those who watch."""
        now = time.monotonic()
        if (
            "gone" in self._warned
            or not self._written_rows
            or self._retry_at
            or (now < self._noted_at + 2.0 and not force)
        ):
            return
        self._noted_at = now
        self._writer.set_meta(
            "monitor",
            {
                "record_us": round(1e6 * median([*self.record_seconds] or [0.0]), 2),
                "write_us": round(1e6 * self._written_seconds / self._written_rows, 2),
                "rows": self._written_rows,
                "lost": self.lost,
                "waiting": len(self._queue),
            },
        )

    def _warn(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, RuntimeWarning, stacklevel=2)


def _steps_in(rows: Sequence[Row]) -> int:
    """Of looks, facts and the like a step may have several rows besides its own."""
    return sum(isinstance(row, StepRow) for row in rows)
