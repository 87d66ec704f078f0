"""`HistoryWriter`: writes rows to a run's file, one transaction per batch."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradkern.history import database, format, scalars
from gradkern.history.batch import Batch
from gradkern.history.facade import History
from gradkern.history.format import HistoryError
from gradkern.history.layout import Layout
from gradkern.history.named import NameLists
from gradkern.history.pyramid import Pyramid, levels_of, span_of
from gradkern.history.reader import PERIODIC
from gradkern.history.recent import RecentRows
from gradkern.history.rows import (
    AmendmentRow,
    EventRow,
    FactsRow,
    HistogramRow,
    Row,
    StepRow,
    WeightsRow,
    ZerosRow,
)
from gradkern.history.summary import row_buckets, stored_buckets

_NEVER = -(2**63)
_MOST = 2**62  # a counter never gets there


class HistoryWriter:
    """The only writer of a run. For one thread at a time.

    A row whose step is not beyond the last one starts a branch: earlier rows from that step on stay in the
    file, but readers see the new ones in their place.

    Args:
        folder: folder of the run.
        meta: entries of `History.meta`.
        journal: SQLite's journal mode. Default: the one that fits the file system.
        check: called with a run that exists, before it is changed. What it raises is raised.
    """

    def __init__(
        self,
        folder: Path,
        meta: dict[str, Any],
        journal: str | None = None,
        check: Callable[[History], None] = lambda history: None,
    ) -> None:
        self.folder = folder
        self._file = folder / format.DATABASE
        self._stale = True
        if database.has_run(folder):
            self._restore(check)  # finds damage before the file is changed
        self._db, self.journal = database.connect_writer(folder, journal)
        try:
            opened = self._file.stat()
            self._identity = opened.st_dev, opened.st_ino
            if self._stale:
                self._restore(check)
            self._lists = NameLists(self._db)
            self._begin_session({**meta, "journal": self.journal})
        except sqlite3.Error as error:
            self._db.close()
            raise format.explain(error, self._file, "GradMonitor") from error
        except BaseException:
            self._db.close()
            raise

    @property
    def last_step(self) -> int | None:
        """Step of the last live row; None if there is none."""
        return None if self._last == _NEVER else self._last

    def gone(self) -> bool:
        """Whether the file was deleted or replaced, so that writing to it is useless."""
        try:
            found = self._file.stat()
        except FileNotFoundError:
            return True
        except OSError:  # a network file system that does not answer for a moment
            return False
        return (found.st_dev, found.st_ino) != self._identity

    def write(self, rows: list[Row]) -> None:
        """Write rows in order, and remove those that are committed from the list.

        Raises:
            sqlite3.Error: the rows that are left in the list are not written; call it with them again.
        """
        if self._stale:
            self._restore()
            self._lists = NameLists(self._db)
        try:
            while rows:
                end = self._until_back(rows)
                if not end:
                    self._begin_branch(rows[0].step)
                self._write_batch(rows[:end])
                del rows[:end]
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._stale = True  # the state in memory may be ahead of the file
            raise

    def close(self) -> None:
        """Close the file. The content of a WAL moves to the main file."""
        if self.journal == "WAL" and not self.gone():  # a replaced file has its own WAL
            database.leave_one_file(self._db)
        self._db.close()

    # ---- the state of the file ----

    def _restore(self, check: Callable[[History], None] = lambda history: None) -> None:
        """Read the state of the file."""
        with format.reading(self._file, "GradMonitor"), History.open(self.folder) as history:
            check(history)
            self._layouts = {layout.key(): number for number, layout in history.layouts.items()}
            self._position = {name: i for i, name in enumerate(history.names)}
            self._last = int(history.steps[-1]) if len(history) else _NEVER
            self._latest = max(self._last, *(history.last_step_of(t) or _NEVER for t in PERIODIC))
            self._next_seq = history.last_seq + 1
            self._branch = max((number for number, *_ in history.branch_rows), default=0)
            self._check_numbers(history)
            self._restore_pyramid(history)
        self._last_layout: tuple[Layout, int] | None = None
        self._stale = False

    def _check_numbers(self, history: History) -> None:
        """Check the numbers that counting continues from.

        Raises:
            HistoryError: a number is out of range.
        """
        top = history.connection.execute("SELECT max(level) FROM summaries").fetchone()[0]
        if top is not None and top not in levels_of(self._next_seq):
            raise HistoryError(f"[GradMonitor] summaries: level {top!r} is out of range")
        for what, number in (
            ("steps", self._next_seq),
            ("branches", self._branch),
            ("layouts", max(self._layouts.values(), default=0)),
        ):
            if not 0 <= number < _MOST:
                raise HistoryError(f"[GradMonitor] {what}: row number {number} is out of range")

    def _restore_pyramid(self, history: History) -> None:
        pyramid = Pyramid()
        parts: dict[int, list[Any]] = {}
        for below, first, end in pyramid.missing(len(history)):
            if below:
                parts[below] = list(stored_buckets(history, below, first, end, len(history.names)))
            else:
                parts[0] = list(row_buckets(history, first, end))
        pyramid.restore(len(history), parts)
        self._recent = RecentRows(pyramid, self._last)

    def _begin_session(self, meta: dict[str, Any]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        pairs = [(key, json.dumps(value)) for key, value in meta.items()]
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", pairs)
        if not self._db.execute("SELECT count(*) FROM branches").fetchone()[0]:
            self._db.execute("INSERT INTO branches VALUES (0, NULL, 1, 0, ?)", (time.time(),))
        self._db.execute("COMMIT")

    @property
    def norm_type(self) -> float | None:
        """Order of the recorded norms; None if nothing was recorded."""
        row = self._db.execute("SELECT value FROM meta WHERE key = 'norm_type'").fetchone()
        with format.reading(self._file, "GradMonitor"):
            return None if row is None else float(format.read_json(row[0], "meta 'norm_type'"))

    def set_meta(self, key: str, value: Any) -> None:
        """Write an entry of `History.meta`."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    # ---- branches ----

    def _until_back(self, rows: Sequence[Row]) -> int:
        """Number of rows before the first one that goes back to an earlier step, or repeats a step.

        Periodic statistics never go back: that would replace later steps.
        """
        last, latest = self._last, self._latest
        for count, row in enumerate(rows):
            if isinstance(row, StepRow):
                if row.step <= last or row.step < latest:
                    return count
                last = row.step
            if not isinstance(row, (EventRow, AmendmentRow, FactsRow)):
                latest = max(last, row.step)
        return len(rows)

    def _begin_branch(self, from_step: int) -> None:
        """Replace the rows from a step on by what is recorded from now on."""
        short = self._recent.back_to(from_step)
        if short is None:
            with History.open(self.folder) as history:
                kept = int(np.searchsorted(history.steps, from_step))
        else:
            kept, self._last = short
        number = self._branch + 1
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute(
            "INSERT INTO branches VALUES (?, ?, ?, ?, ?)",
            (number, from_step, self._next_seq, kept, time.time()),
        )
        for level in levels_of(self._next_seq):
            first = kept // span_of(level)
            self._db.execute("DELETE FROM summaries WHERE level = ? AND idx >= ?", (level, first))
        self._db.execute("COMMIT")
        self._branch = number
        if short is None:
            self._restore()
        self._latest = min(self._latest, from_step - 1)

    # ---- rows ----

    def _write_batch(self, rows: Sequence[Row]) -> None:
        """Write rows with ascending steps in one transaction."""
        self._db.execute("BEGIN IMMEDIATE")
        batch = Batch(self._db, self._lists)
        before = self._next_seq - 1
        for row in rows:
            if isinstance(row, StepRow):
                self._last = row.step
                batch.add_step(self._next_seq, self._branch, self._layout_id(row.layout), row)
                self._next_seq += 1
                batch.add_summaries(self._recent.add(row, len(self._position)))
            elif isinstance(row, (WeightsRow, HistogramRow, ZerosRow)):
                batch.add_periodic(self._branch, self._layout_id(row.layout), row)
            else:
                batch.add_other(self._branch, row)
            if not isinstance(row, (EventRow, AmendmentRow, FactsRow)):
                self._latest = max(self._last, row.step)
        batch.insert()
        scalars.write_blocks(self._db, before, self._next_seq - 1)
        self._db.execute("COMMIT")

    def _layout_id(self, layout: Layout) -> int:
        if self._last_layout is not None and self._last_layout[0] is layout:
            return self._last_layout[1]
        number = self._layouts.get(layout.key())
        if number is None:
            number = max(self._layouts.values(), default=0) + 1
            self._db.execute("INSERT INTO layouts VALUES (?, ?)", (number, json.dumps(layout.to_json())))
            self._layouts[layout.key()] = number
        for name in layout.names:
            self._position.setdefault(name, len(self._position))
        layout.columns = np.array([self._position[name] for name in layout.names], dtype=np.int64)
        self._last_layout = (layout, number)
        return number
