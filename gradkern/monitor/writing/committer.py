"""`Committer`: rows to the file and to the sinks, with retries while the disk fails."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from gradkern.history import format
from gradkern.history.rows import Row, StepRow
from gradkern.history.writer import HistoryWriter
from gradkern.monitor.writing.warned import Warned

RETRY = 1.0  # seconds until the first retry; each further one takes twice as long
RETRY_MOST = 30.0
BATCH = 256  # rows of one transaction


class Feed(Protocol):
    """Receives committed rows, in addition to the file."""

    def open(self, run_dir: Path) -> None: ...
    def send(self, rows: Sequence[Row]) -> list[str]:
        """Send the rows. Returns the messages to warn with."""
        ...

    def close(self) -> None: ...


class Committer:
    """Holds rows until they are in the file. Used by the writing thread.

    While nothing can be written, it keeps the newest rows that fit into `limit` bytes. It drops the others
    and counts them in `lost`.
    """

    def __init__(self, file: Path, writer: HistoryWriter, feed: Feed, warned: Warned) -> None:
        self._file, self.writer, self._feed, self._warned = file, writer, feed, warned
        self.rows: list[Row] = []
        self.lost = 0
        self.written_rows, self.written_seconds = 0, 0.0
        self.committed: Callable[[Sequence[Row]], None] = lambda rows: None
        """Called with the rows of each commit."""
        self.norm_type = self._noted_type = writer.norm_type
        """The order of the run's norms; written with the next rows."""
        self._retry_at, self._retry_after = 0.0, RETRY

    @property
    def failing(self) -> bool:
        """Whether the last attempt to write failed."""
        return bool(self._retry_at)

    @property
    def gone(self) -> bool:
        """Whether the file was deleted or replaced."""
        return "gone" in self._warned

    def add(self, rows: Sequence[Row], row_bytes: int, limit: int) -> None:
        """Take rows; commits them when a batch is full.

        Args:
            row_bytes: size of a row at most.
            limit: bytes that all rows may take while writing fails.
        """
        self.rows += rows
        if self.failing:
            self._drop_oldest(max(16, limit // max(row_bytes, 1)))
        elif len(self.rows) >= BATCH:
            self.commit()

    def lose(self, what: str, error: Exception) -> None:
        """Count a step that cannot be recorded."""
        self.lost += 1
        self._warned.tell("row", f"[GradMonitor] {str(self._file)!r}: {what}: {error!r}. Training continues.")

    def commit(self, now: bool = True) -> None:
        """Write what is held.

        Args:
            now: also if a retry is not due yet.
        """
        if not self.rows or not (now or time.monotonic() >= self._retry_at):
            return
        if self.writer.gone():
            self._give_up()
            return
        batch, start = list(self.rows), time.perf_counter()
        try:
            self._write()
        except sqlite3.Error as error:
            self._fail(str(format.explain(error, self._file, "GradMonitor")))
        except format.HistoryError as error:
            self._fail(str(error))
        else:
            self._retry_at, self._retry_after = 0.0, RETRY
            self._warned.over("write")
        done = batch[: len(batch) - len(self.rows)]
        self.written_rows += len(done)
        self.written_seconds += time.perf_counter() - start
        self._send(done)
        self.committed(done)

    def retry_now(self) -> None:
        """Let the next commit try at once."""
        self._retry_at = 0.0

    def give_up_rest(self) -> None:
        """Count what could not be written as lost."""
        if self.rows:
            self.lost += _steps_in(self.rows)
            self._warned.tell(
                "lost", f"[GradMonitor] {str(self._file)!r}: {len(self.rows)} rows could not be written"
            )

    def _write(self) -> None:
        """Rows to the file; what is committed, or can never be, is removed from the list."""
        if self._noted_type != self.norm_type:
            self.writer.set_meta("norm_type", self.norm_type)
            self._noted_type = self.norm_type
        try:
            self.writer.write(self.rows)
        except (sqlite3.Error, format.HistoryError):
            raise
        except Exception:  # a row that no file can hold: write them one at a time, without it
            self._write_one_by_one()

    def _write_one_by_one(self) -> None:
        while self.rows:
            one = [self.rows[0]]
            try:
                self.writer.write(one)
            except (sqlite3.Error, format.HistoryError):
                raise
            except Exception as error:
                self.lose(f"step {self.rows[0].step} cannot be recorded", error)
            del self.rows[0]

    def _fail(self, reason: str) -> None:
        self._retry_at = time.monotonic() + self._retry_after
        self._retry_after = min(2 * self._retry_after, RETRY_MOST)
        self._warned.tell(
            "write",
            f"{reason}. Training continues. Recent steps are kept in memory (up to a limit) and writing is "
            "retried.",
        )

    def _give_up(self) -> None:
        self.lost += _steps_in(self.rows)
        self._send(self.rows)
        self.rows.clear()
        self._warned.tell(
            "gone",
            f"[GradMonitor] {str(self._file)!r}: the file was deleted or replaced while it was recorded to. "
            "Later steps are lost. Training continues. Close this monitor and build a new one to record.",
        )

    def _drop_oldest(self, most: int) -> None:
        excess = len(self.rows) - most
        if excess > 0:
            self.lost += _steps_in(self.rows[:excess])
            del self.rows[:excess]

    def _send(self, rows: Sequence[Row]) -> None:
        for message in self._feed.send(rows):
            self._warned.tell(message, message)


def _steps_in(rows: Sequence[Row]) -> int:
    """How many of the rows are steps."""
    return sum(isinstance(row, StepRow) for row in rows)
