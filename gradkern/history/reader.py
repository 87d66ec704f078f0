"""`HistoryReader`: reads the file of a run and determines which of its rows are live."""

from __future__ import annotations

import bisect
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gradkern.history import database, format
from gradkern.history.columns import Columns
from gradkern.history.format import HistoryError
from gradkern.history.layout import MOST_NAMES, Layout
from gradkern.history.scalars import Scalars

F = TypeVar("F", bound=Callable[..., Any])
_PIECE = 1024
_FEW = 16  # rows with large blobs that are read at a time
_GAP = 64  # rows that are read and dropped rather than making another query
_BEYOND = 2**63 - 1
#: Tables of periodic statistics: weight norms and update ratios, histograms, and zeros in the gradients (the
#: table `looks`). Their rows have a step and a layout.
PERIODIC = ("weights", "hists", "looks")


def names_file(method: F) -> F:
    """Make errors of a method name the file; see `format.reading`."""

    @wraps(method)
    def wrapped(self: HistoryReader, *args: Any, **kwargs: Any) -> Any:
        with format.reading(self.path):
            return method(self, *args, **kwargs)

    return wrapped  # type: ignore[return-value]


@dataclass(frozen=True)
class Branch:
    """A point at which a run was continued from an earlier step."""

    from_step: int
    """The first step that was recorded again."""
    time: float
    """When, in seconds since 1970."""
    replaced: int
    """Number of recorded steps that were replaced."""


class HistoryReader:
    """Base of `History`: the connection, the layouts, the plain numbers of all steps, and the live rows."""

    def __init__(self, connection: sqlite3.Connection, path: Path, superseded: bool) -> None:
        self._db = connection
        self.path = path
        self._superseded = superseded
        self._scalars = Scalars()
        self._cache: dict[Any, Any] = {}
        self._kept: dict[Any, Any] = {}
        """As `_cache`, over a refresh: what is only added to."""
        self.refresh()

    @names_file
    def refresh(self) -> int:
        """Read what was recorded since the last call. Returns the number of new rows."""
        try:
            return self._refresh()
        except sqlite3.OperationalError as error:
            if "readonly" not in str(error):
                raise
            database.play_back(self.path, "History.refresh")  # the writer was killed in a transaction
            return self._refresh()

    def _refresh(self) -> int:
        self._db.execute("BEGIN")  # a consistent view of all tables
        try:
            self._read_layouts()
            query = "SELECT id, from_step, first_seq, kept, time FROM branches ORDER BY id"
            self._branch_rows = self._db.execute(query).fetchall()
            new = self._read_scalars()
        finally:
            self._db.execute("COMMIT")
        self._mark()
        self._select()
        self._cache.clear()
        return new

    def close(self) -> None:
        """Close the file. Arrays that were read before stay valid."""
        self._db.close()

    @property
    def connection(self) -> sqlite3.Connection:
        """The read-only connection."""
        return self._db

    @property
    def shows_superseded(self) -> bool:
        """Whether replaced rows are shown."""
        return self._superseded

    @property
    def layouts(self) -> dict[int, Layout]:
        """The layouts of the run by number; a new one for each change of the parameters."""
        return self._layouts

    @property
    def last_layout(self) -> Layout:
        """The layout of the last live row.

        Raises:
            IndexError: nothing was recorded.
        """
        return self._layouts[int(self._column("layout")[-1])]

    @property
    def branch_rows(self) -> list[tuple[Any, ...]]:
        """The rows of the table `branches`."""
        return self._branch_rows

    @property
    def last_seq(self) -> int:
        """Number of the last row in the file, counting replaced rows."""
        return self._scalars.last_seq

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def names(self) -> tuple[str, ...]:
        """[N] canonical names of all parameters, in order of first appearance."""
        return self._names

    @property
    def numel(self) -> NDArray[np.int64]:
        """[N] elements of each parameter; the latest if a parameter changed its size."""
        return self._numel

    @property
    def repeated(self) -> frozenset[int]:
        """Columns that are always a second name of a parameter with an earlier column."""
        twice, once = set[int](), set[int]()
        for layout in self._layouts.values():
            twice.update(layout.columns[layout.repeats].tolist())
            once.update(layout.columns[~layout.repeats].tolist())
        return frozenset(twice - once)

    @property
    def repeats(self) -> NDArray[np.bool_]:
        """[T, N] whether the parameter has an earlier column at that step."""
        found = np.zeros((len(self), len(self._names)), dtype=bool)
        for number, layout in self._layouts.items():
            if layout.repeats.any():
                found[np.ix_(self._column("layout") == number, layout.columns[layout.repeats])] = True
        return found

    @property
    @names_file
    def params(self) -> dict[str, dict[str, Any]]:
        """Details of each parameter by name: numel, shape, dtype, trainable, group, kind.

        The details are those of the first record. If a parameter is frozen later, `has_grad` shows it.
        """
        return {name: dict(entry) for layout in self._layouts.values() for name, entry in layout.entries()}

    @property
    @names_file
    def meta(self) -> dict[str, Any]:
        """Metadata: version, norm_type, every, journal, optimizer, …, and the times when the monitor was
        opened and closed (None while it records, or if its process was killed)."""
        rows = self._db.execute("SELECT key, value FROM meta").fetchall()
        return {str(key): format.read_json(value, f"meta {key!r}") for key, value in rows}

    @property
    @names_file
    def norm_type(self) -> float:
        """Order of `norm` and `total_norm`."""
        return float(self.meta.get("norm_type", 2.0))

    @property
    @names_file
    def branches(self) -> list[Branch]:
        """The points at which the run was continued from an earlier step, in order of time."""
        found: list[Branch] = []
        seqs, steps = self._all["seq"], self._all["step"].tolist()
        live: list[int] = []  # ascending steps that are not replaced yet
        before = 0
        for _, from_step, first_seq, _, time in self._branch_rows:
            if from_step is None:
                continue
            first = int(np.searchsorted(seqs, first_seq))
            live += steps[before:first]
            before = max(before, first)
            kept = bisect.bisect_left(live, from_step)
            found.append(Branch(int(from_step), float(time), len(live) - kept))
            del live[kept:]
        return found

    def _column(self, name: str) -> NDArray[Any]:
        return self._all[name][self._rows]

    def _read_layouts(self) -> None:
        self._layouts: dict[int, Layout] = {}
        position: dict[str, int] = {}
        for number, text in self._db.execute("SELECT id, params FROM layouts ORDER BY id"):
            layout = Layout.from_json(format.read_json(text, f"layout {number}"))
            layout.columns = np.array(
                [position.setdefault(name, len(position)) for name in layout.names], dtype=np.int64
            )
            self._layouts[number] = layout
            if len(position) > MOST_NAMES:
                raise HistoryError(f"[History] layouts: expected at most {MOST_NAMES} names in all")
        self._names = tuple(position)
        self._numel = np.zeros(len(position), dtype=np.int64)
        for layout in self._layouts.values():
            self._numel[layout.columns] = layout.numel

    def _read_scalars(self) -> int:
        new = self._scalars.read(self._db)
        self._all = self._scalars.columns
        for number in np.unique(self._all["layout"]).tolist():
            if number not in self._layouts:
                raise HistoryError(f"[History] {str(self.path)!r}: layout {number!r} is missing")
        return new

    def _select(self) -> None:
        """Which steps are live."""
        self._rows = np.flatnonzero(self._live(self._all["branch"], self._all["step"]))

    def _live(self, branch: Any, step: Any) -> NDArray[np.bool_]:
        """Whether rows of a branch (one, or an array) were not replaced by a later one."""
        numbers, limits = self._marks
        return np.asarray(step < limits[np.searchsorted(numbers, branch, side="right")])

    @names_file
    def live_rows(self, table: str) -> tuple[list[int], NDArray[np.int64]]:
        """(ids, steps) of the live rows of a table of `PERIODIC`; their blobs are not read.

        A run can go back to a step that is not in `steps` (``every=``), without a branch. A row therefore
        replaces earlier rows of its step and of later steps.
        """
        if ("live", table) in self._cache:
            return self._cache["live", table]
        found = self._db.execute(f"SELECT id, branch, step FROM {table} ORDER BY id").fetchall()
        ids, branches, steps = np.array(found, dtype=np.int64).reshape(-1, 3).T
        live = np.flatnonzero(self._live(branches, steps))
        if not self._superseded and len(live):
            least = np.minimum.accumulate(steps[live][::-1])[::-1]  # of a row and all after it
            live = live[np.append(steps[live][:-1] < least[1:], True)]
        self._cache["live", table] = ids[live].tolist(), steps[live]
        return self._cache["live", table]

    def read_rows(self, table: str, columns: str, ids: Sequence[int]) -> Iterator[tuple[Any, ...]]:
        """(layout, *columns) of some rows of a table of `PERIODIC`, reading a few at a time."""
        for start in range(0, len(ids), _FEW):
            piece = ids[start : start + _FEW]
            query = f"SELECT id, layout, {columns} FROM {table} WHERE id IN ({','.join('?' * len(piece))})"
            found = {row[0]: row[1:] for row in self._db.execute(query, piece)}
            for number in piece:
                layout, *values = found.get(number, (None,))
                if layout not in self._layouts:
                    raise HistoryError(f"[History] {str(self.path)!r}: row {number} of {table} is damaged")
                yield self._layouts[layout], *values

    def _mark(self) -> None:
        """Find the ids of the branches, and for each the first step that it or a later one replaced; one more
        entry, beyond every step, for rows that no branch replaced."""
        marks = [] if self._superseded else [(n, s) for n, s, *_ in self._branch_rows if s is not None]
        starts = np.array([s for _, s in marks] + [_BEYOND], dtype=np.int64)
        limits = np.minimum.accumulate(starts[::-1])[::-1]
        self._marks = np.array([n for n, _ in marks], dtype=np.int64), limits

    @names_file
    def last_step_of(self, table: str) -> int | None:
        """The step of the last live row of a table of `PERIODIC`; None if there is none."""
        for branch, step in self._db.execute(f"SELECT branch, step FROM {table} ORDER BY id DESC"):
            if self._live(branch, step):
                return int(step)
        return None

    def _read_columns(self, rows: NDArray[np.int64], numel: NDArray[np.int64]) -> Columns:
        columns = Columns(len(rows), numel)
        seqs, layouts = self._all["seq"][rows], self._all["layout"][rows]
        query = (
            "SELECT seq, norm, max_abs, l2_norm, nonfinite, zeros, factor FROM vals WHERE seq BETWEEN ? AND ?"
        )
        for start in range(0, len(rows), _PIECE):  # in short reads: a writer without a WAL waits for them
            piece = seqs[start : start + _PIECE]
            found = {}
            for part in np.split(piece, np.flatnonzero(np.diff(piece) > _GAP) + 1):
                found.update({row[0]: row for row in self._db.execute(query, (int(part[0]), int(part[-1])))})
            missing = [seq for seq in piece.tolist() if seq not in found]
            if missing:
                raise HistoryError(f"[History] {str(self.path)!r}: row {missing[0]} of `vals` is missing")
            kinds = layouts[start : start + _PIECE]
            for number in np.unique(kinds):
                at = np.flatnonzero(kinds == number)
                columns.put(at + start, self._layouts[int(number)], [found[s] for s in piece[at].tolist()])
        self._put_zeros(columns, self._all["step"][rows])
        return columns

    def _put_zeros(self, columns: Columns, steps: NDArray[np.int64]) -> None:
        """Fill in the periodic zero counts of these steps."""
        ids, at = self.live_rows("looks")
        row_of = {step: row for row, step in enumerate(steps.tolist())}
        wanted = [(number, row_of[step]) for number, step in zip(ids, at.tolist()) if step in row_of]
        found = self.read_rows("looks", "zeros", [number for number, _ in wanted])
        for (_, row), (layout, blob) in zip(wanted, found):
            if not isinstance(blob, bytes) or len(blob) != 8 * len(layout.columns):
                raise HistoryError("[History] looks: damaged: expected a count for each parameter")
            columns.put_zeros(row, layout.columns, np.frombuffer(blob, dtype="<i8"))
