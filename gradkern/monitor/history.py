"""`History`: what a run has recorded, while it is recorded or afterwards."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gradkern.monitor import store
from gradkern.monitor.columns import Columns, LayerColumns, Layout, roll_up
from gradkern.monitor.scalars import Scalars
from gradkern.monitor.store import HistoryError
from gradkern.monitor.summary_reader import Summary, read_summary

Floats = NDArray[np.floating[Any]]
F = TypeVar("F", bound=Callable[..., Any])


def _names_file(method: F) -> F:
    """SQLite's errors become HistoryErrors that name the file."""

    @wraps(method)
    def wrapped(self: History, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except sqlite3.Error as error:
            raise store.explain(error, self.path, "History") from error
        except (TypeError, OverflowError, IndexError, KeyError, UnicodeError) as error:
            # The types of what SQLite returns are the file's, not ours.
            raise HistoryError(f"[History] {str(self.path)!r}: a damaged row: {error}") from error

    return wrapped  # type: ignore[return-value]


@dataclass(frozen=True)
class Branch:
    """A place where recording went on from an earlier step than the last one."""

    from_step: int
    """The first step recorded after going back."""
    time: float
    """When, in seconds since 1970."""
    replaced: int
    """How many recorded steps it replaced."""


class History:
    """A recorded run. Arrays have T rows, the recorded steps, and N columns, the parameters.

    Only plain numbers of each step are read when it is opened; the [T, N] arrays are read when they
    are asked for, and kept until `refresh`. Reading changes nothing, executes nothing from the file
    and never disturbs the process that records.

    Where a run went back to an earlier step (a resume from a checkpoint), the steps recorded
    before and replaced afterwards are left out; ``History.open(run, superseded=True)`` shows every
    row in the order it was written.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path, superseded: bool) -> None:
        self._db = connection
        self.path = path
        self._superseded = superseded
        self._scalars = Scalars()
        self._cache: dict[str, Any] = {}
        self.refresh()

    @classmethod
    def open(cls, run_dir: str | os.PathLike[str], *, superseded: bool = False) -> History:
        """Open a run to read.

        Args:
            run_dir: the folder given to `GradMonitor` (or its history.db).
            superseded: show the rows that a later branch replaced, too.

        Raises:
            HistoryError: there is no run, or its file is damaged or something else; names the file.
        """
        connection = store.connect_reader(run_dir)
        folder = Path(run_dir)
        path = folder / store.DATABASE if folder.is_dir() else folder
        try:
            return cls(connection, path, superseded)
        except sqlite3.Error as error:
            connection.close()
            raise store.explain(error, path, "History.open") from error
        except BaseException:
            connection.close()
            raise

    @_names_file
    def refresh(self) -> int:
        """Read what was recorded since; returns how many rows are new. Cheap if nothing is."""
        self._db.execute("BEGIN")  # one consistent picture of all tables
        try:
            self._read_layouts()
            query = "SELECT id, from_step, first_seq, kept, time FROM branches ORDER BY id"
            self._branch_rows = self._db.execute(query).fetchall()
            new = self._read_scalars()
        finally:
            self._db.execute("COMMIT")
        self._select()
        self._cache.clear()
        return new

    def close(self) -> None:
        """Close the file; arrays already read stay."""
        self._db.close()

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def connection(self) -> sqlite3.Connection:
        """The read-only connection."""
        return self._db

    @property
    def shows_superseded(self) -> bool:
        """Whether replaced rows are shown too."""
        return self._superseded

    @property
    def layouts(self) -> dict[int, Layout]:
        """The sets of parameters that the run has had."""
        return self._layouts

    @property
    def branch_rows(self) -> list[tuple[Any, ...]]:
        """Rows of `branches` as they are in the file."""
        return self._branch_rows

    @property
    def last_seq(self) -> int:
        """Number of the last row in the file, replaced ones counted."""
        return self._scalars.last_seq

    # ---- what is there ----

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical names of all parameters of the run, in order of first appearance."""
        return self._names

    @property
    def numel(self) -> NDArray[np.int64]:
        """[N] elements of each parameter (of the latest, if one changed its size)."""
        return self._numel

    @property
    def repeated(self) -> frozenset[int]:
        """Columns of parameters that have an earlier column, too: listed twice, under two names."""
        return frozenset(
            int(layout.columns[row])
            for layout in self._layouts.values()
            for row in np.flatnonzero(layout.first != np.arange(len(layout.first)))
        )

    @property
    def params(self) -> dict[str, dict[str, Any]]:
        """For each name what is known of the parameter: numel, shape, dtype, trainable, group, kind."""
        return {name: dict(entry) for layout in self._layouts.values() for name, entry in layout.entries()}

    @property
    @_names_file
    def meta(self) -> dict[str, Any]:
        """What the monitor noted: version, norm_type, every, journal, optimizer, …"""
        rows = self._db.execute("SELECT key, value FROM meta").fetchall()
        return {str(key): store.read_json(value, f"meta {key!r}") for key, value in rows}

    @property
    def norm_type(self) -> float:
        """Order of `norm` and `total_norm`."""
        return float(self.meta.get("norm_type", 2.0))

    @property
    def branches(self) -> list[Branch]:
        """Where recording went on from an earlier step, in order of time."""
        found = []
        for number, from_step, first_seq, _, time in self._branch_rows:
            if from_step is None:
                continue
            earlier = [(n, s) for n, s, *_ in self._branch_rows if s is not None and n < number]
            gone = (self._all["seq"] < first_seq) & (self._all["step"] >= from_step)
            for n, step in earlier:  # what was replaced before is not replaced again
                gone &= (self._all["branch"] >= n) | (self._all["step"] < step)
            found.append(Branch(int(from_step), float(time), int(np.count_nonzero(gone))))
        return found

    def numel_rows(self, first: int = 0, end: int | None = None) -> NDArray[np.int64]:
        """[1, N], or [T, N] if a parameter changed its size among the rows ``[first, end)``."""
        layouts = self._column("layout")[first:end]
        used = {int(n): self._layouts[int(n)] for n in np.unique(layouts)}
        if all(np.array_equal(self._numel[x.columns], x.numel) for x in used.values()):
            return self._numel[None]
        sizes = np.tile(self._numel, (len(layouts), 1))
        for number, layout in used.items():
            sizes[np.ix_(layouts == number, layout.columns)] = layout.numel
        return sizes

    # ---- one number a step ----

    @property
    def steps(self) -> NDArray[np.int64]:
        """[T] step numbers (ascending, unless opened with superseded=True)."""
        return self._column("step")

    @property
    def time(self) -> NDArray[np.float64]:
        """[T] wall time of `record`, seconds since 1970."""
        return self._column("time")

    @property
    def loss(self) -> NDArray[np.float64]:
        """[T] loss; NaN where it was NaN or not given (see `has_loss`)."""
        return self._column("loss")

    @property
    def has_loss(self) -> NDArray[np.bool_]:
        """[T] whether a loss was given."""
        return np.asarray((self._column("flags") & store.HAS_LOSS) != 0)

    @property
    def total_norm(self) -> NDArray[np.float64]:
        """[T] norm of all gradients together, of the phase that `phase` says."""
        return self._column("total_norm")

    @property
    def clip_coef(self) -> NDArray[np.float64]:
        """[T] what gradients were multiplied by; NaN where the norm was NaN, or nothing was to be
        clipped (`has_coef`)."""
        return self._column("clip_coef")

    @property
    def has_coef(self) -> NDArray[np.bool_]:
        """[T] whether the statistics came from a clip, so that `clip_coef` means something."""
        return np.asarray((self._column("flags") & store.HAS_COEF) != 0)

    @property
    def clipped(self) -> NDArray[np.bool_]:
        """[T] whether gradients were changed by clipping: a coefficient below 1, or NaN."""
        return self.has_coef & ~(self.clip_coef >= 1)

    @property
    def max_norm(self) -> NDArray[np.float64]:
        """[T] the clipping threshold, deduced where something was clipped; NaN elsewhere."""
        with np.errstate(invalid="ignore"):
            deduced = self.clip_coef * (self.total_norm + 1e-6)
        return np.where(self.clipped & np.isfinite(deduced), deduced, np.nan)

    @property
    def skipped(self) -> NDArray[np.bool_]:
        """[T] whether the policy said to skip the step (GradClipper's on_nonfinite="skip")."""
        return np.asarray((self._column("flags") & store.SKIPPED) != 0)

    @property
    def phase(self) -> NDArray[np.str_]:
        """[T] what the norms are of: "before_clip" (from the pass that clipped), "measured" (the
        gradients as `record` found them) or "after_clip" (the caller said so)."""
        names: NDArray[np.str_] = np.array(store.PHASES)[
            np.minimum((self._column("flags") >> store.PHASE_SHIFT) & 3, 2)
        ]
        return names

    @property
    def inv_scale(self) -> NDArray[np.float64]:
        """[T] the factor (1 / loss scale) already in all norms of the step; 1.0 without loss scaling."""
        return self._column("inv_scale")

    @property
    def lr(self) -> NDArray[np.float64]:
        """[T] learning rate of the first parameter group; NaN without an optimizer."""
        groups = self.lr_groups
        return groups[:, 0] if groups.shape[1] else np.full(len(self), np.nan)

    @property
    def lr_groups(self) -> NDArray[np.float64]:
        """[T, G] learning rate of each parameter group; NaN where a group was not there."""
        if "lr" not in self._cache:
            self._cache["lr"] = self._scalars.lr[self._rows]
        return self._cache["lr"]

    # ---- one number a parameter and step ----

    @property
    def norm(self) -> Floats:
        """[T, N] norms of order `norm_type`; NaN where there was no gradient (`has_grad`) or it held NaN."""
        return self._matrix("norm")

    @property
    def l2_norm(self) -> Floats:
        """[T, N] L2 norms, whatever `norm_type` is."""
        return self._matrix("l2_norm")

    @property
    def rms(self) -> Floats:
        """[T, N] root mean square, ``l2_norm / sqrt(numel)``: comparable across sizes."""
        if "rms" not in self._cache:
            roots = np.sqrt(np.maximum(self.numel_rows(), 1)).astype(self.l2_norm.dtype)
            self._cache["rms"] = self.l2_norm / roots
        return self._cache["rms"]

    @property
    def max_abs(self) -> Floats:
        """[T, N] largest magnitudes."""
        return self._matrix("max_abs")

    @property
    def has_grad(self) -> NDArray[np.bool_]:
        """[T, N] whether the parameter was there and had a gradient."""
        return self._matrix("has_grad")

    @property
    def nonfinite(self) -> NDArray[np.int64]:
        """[T, N] how many elements were inf or NaN."""
        return self._matrix("nonfinite")

    @property
    def zeros(self) -> NDArray[np.int64] | None:
        """[T, N] how many elements were zero, -1 where not counted; None if never counted."""
        return self._matrix("zeros")

    @_names_file
    def window(self, first: int, end: int) -> Columns:
        """The per-parameter columns of rows ``[first, end)`` only (negative: from the end), without
        reading the others. T is then the number of those rows."""
        first, end, _ = slice(first, end).indices(len(self))
        return self._read_columns(self._rows[first : max(first, end)])

    # ---- every so often ----

    @property
    def update_steps(self) -> NDArray[np.int64]:
        """[U] the steps at which weights were looked at."""
        return self._weights()[0]

    @property
    def update_exact(self) -> NDArray[np.bool_]:
        """[U] True where every element was looked at, False where a fixed sample of them was."""
        return self._weights()[1]

    @property
    def weight_norm(self) -> Floats:
        """[U, N] L2 norm of each parameter before the step."""
        return self._weights()[2]

    @property
    def update_ratio(self) -> Floats:
        """[U, N] ‖Δw‖ / ‖w‖ of the optimizer step; NaN where not known, inf where ‖w‖ was 0."""
        return self._weights()[3]

    @property
    def histogram_steps(self) -> NDArray[np.int64]:
        """[V] the steps at which histograms were taken."""
        return self._histograms()[0]

    @property
    def histogram(self) -> NDArray[np.int64]:
        """[V, N, B] how many sampled elements lie in each bin of `histogram_exponents`."""
        return self._histograms()[1]

    @property
    def histogram_exponents(self) -> NDArray[np.int64]:
        """[B] bin b holds magnitudes in ``[2**e, 2**(e+1))``; the first one everything below, zero
        excepted, the last one everything above."""
        from gradkern.monitor.histogram import EXPONENTS

        return np.array(EXPONENTS, dtype=np.int64)

    @property
    def underflow(self) -> dict[str, Floats]:
        """For "fp16", "bf16", "fp8_e4m3", "fp8_e5m2": [V, N] fraction of the non-zero sampled
        elements that round to zero in that format."""
        from gradkern.monitor.histogram import FORMATS

        fractions = self._histograms()[2]
        return {name: fractions[:, :, i] for i, name in enumerate(FORMATS)}

    # ---- views ----

    @_names_file
    def summary(self, max_points: int = 1000, depth: int | None = None) -> Summary:
        """The whole run in at most `max_points` points, from aggregates kept while it was recorded.

        Args:
            max_points: how many points at most; a shorter run gives one a step.
            depth: roll parameters up to modules, as `layers`.

        Notes:
            Never scans the whole: reads about ``4 * max_points`` aggregates and a short tail.
        """
        try:
            return read_summary(self, max_points, depth)
        except HistoryError:
            before = len(self._branch_rows)
            self.refresh()
            if len(self._branch_rows) == before:
                raise
            return read_summary(self, max_points, depth)  # it went back to an earlier step meanwhile

    def layers(self, depth: int | None = None) -> LayerColumns:
        """Rows of modules instead of parameters, as `GradStats.by_layer`.

        Args:
            depth: keep at most that many leading components of the module's name.
        """
        return roll_up(self, depth)

    def to_pandas(self) -> Any:
        """A long table (pandas.DataFrame), one line a step and parameter. Needs gradkern[monitor]."""
        from gradkern.monitor.export import to_pandas

        return to_pandas(self)

    def to_csv(self, file: str | os.PathLike[str]) -> None:
        """The long table as CSV, written in pieces; needs nothing else."""
        from gradkern.monitor.export import to_csv

        to_csv(self, file)

    def to_parquet(self, file: str | os.PathLike[str]) -> None:
        """The long table as Parquet, written in pieces. Needs gradkern[parquet]."""
        from gradkern.monitor.export import to_parquet

        to_parquet(self, file)

    def _repr_html_(self) -> str:
        """The run in a few lines, for a notebook; names are escaped."""
        from gradkern.monitor.reprs import history_html

        return history_html(self)

    def __repr__(self) -> str:
        if not len(self):
            return f"History({str(self.path)!r}: nothing recorded yet, {len(self.names)} parameters)"
        return (
            f"History({str(self.path)!r}: {len(self)} steps {self.steps[0]}–{self.steps[-1]}, "
            f"{len(self.names)} parameters, total_norm {self.total_norm[-1]:.4g}, "
            f"{np.count_nonzero(self.clipped)} clipped, {np.count_nonzero(self.skipped)} skipped)"
        )

    # ---- reading ----

    def _column(self, name: str) -> NDArray[Any]:
        return self._all[name][self._rows]

    def _read_layouts(self) -> None:
        self._layouts: dict[int, Layout] = {}
        position: dict[str, int] = {}
        for number, text in self._db.execute("SELECT id, params FROM layouts ORDER BY id"):
            layout = Layout.from_json(store.read_json(text, f"layout {number}"))
            layout.columns = np.array(
                [position.setdefault(name, len(position)) for name in layout.names], dtype=np.int64
            )
            self._layouts[number] = layout
        self._names = tuple(position)
        self._numel = np.zeros(len(position), dtype=np.int64)
        for layout in self._layouts.values():
            self._numel[layout.columns] = layout.numel

    def _read_scalars(self) -> int:
        try:
            new = self._scalars.read(self._db)
        except HistoryError as error:
            raise HistoryError(f"{error} ({str(self.path)!r})") from error
        self._all = self._scalars.columns
        for number in np.unique(self._all["layout"]).tolist():
            if number not in self._layouts:
                raise HistoryError(f"[History] {str(self.path)!r}: layout {number!r} is missing")
        return new

    def _select(self) -> None:
        """Which rows are live: not replaced by a later branch."""
        live = np.ones(len(self._all["seq"]), dtype=bool)
        for number, from_step, *_ in [] if self._superseded else self._branch_rows:
            if from_step is not None:
                live &= (self._all["branch"] >= number) | (self._all["step"] < from_step)
        self._rows = np.flatnonzero(live)

    def _live(self, table: str, columns: str) -> list[tuple[Any, ...]]:
        """Rows of `weights` or `hists` that no later branch replaced."""
        query = f"SELECT branch, step, layout, {columns} FROM {table} ORDER BY id"
        found = self._db.execute(query).fetchall()
        marks = [(n, s) for n, s, *_ in self._branch_rows if s is not None and not self._superseded]
        return [row for row in found if all(row[0] >= n or row[1] < s for n, s in marks)]

    def _matrix(self, name: str) -> NDArray[Any]:
        if "columns" not in self._cache:
            self._cache["columns"] = self.window(0, len(self))
        return getattr(self._cache["columns"], name)

    def _read_columns(self, rows: NDArray[np.int64]) -> Columns:
        columns = Columns(len(rows), len(self.names))
        seqs, layouts = self._all["seq"][rows], self._all["layout"][rows]
        for start in range(0, len(rows), _PIECE):  # short reads: a writer without WAL waits for them
            piece = seqs[start : start + _PIECE]
            query = "SELECT seq, norm, max_abs, l2_norm, nonfinite, zeros FROM vals WHERE seq BETWEEN ? AND ?"
            found = {row[0]: row for row in self._db.execute(query, (int(piece.min()), int(piece.max())))}
            missing = [seq for seq in piece.tolist() if seq not in found]
            if missing:
                raise HistoryError(f"[History] {str(self.path)!r}: row {missing[0]} of `vals` is missing")
            kinds = layouts[start : start + _PIECE]
            for number in np.unique(kinds):
                at = np.flatnonzero(kinds == number)
                columns.put(at + start, self._layouts[int(number)], [found[s] for s in piece[at].tolist()])
        return columns

    @_names_file
    def _weights(self) -> tuple[NDArray[np.int64], NDArray[np.bool_], Floats, Floats]:
        if "weights" not in self._cache:
            rows = self._live("weights", "exact, weight_norm, ratio")
            norms = np.full((len(rows), len(self.names)), np.nan, dtype=np.float32)
            ratios = norms.copy()
            for i, (_, _, number, _, norm, ratio) in enumerate(rows):
                columns = self._layout(number).columns
                norms[i, columns] = store.decode(norm, len(columns), "weights")
                ratios[i, columns] = store.decode(ratio, len(columns), "weights")
            steps = np.array([row[1] for row in rows], dtype=np.int64)
            self._cache["weights"] = (steps, np.array([bool(r[3]) for r in rows], dtype=bool), norms, ratios)
        return self._cache["weights"]

    @_names_file
    def _histograms(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
        if "histograms" not in self._cache:
            from gradkern.monitor.histogram import EXPONENTS, FORMATS

            rows = self._live("hists", "counts, underflow")
            width = len(self.names)
            counts = np.zeros((len(rows), width, len(EXPONENTS)), dtype=np.int64)
            underflow = np.full((len(rows), width, len(FORMATS)), np.nan, dtype=np.float32)
            for i, (_, _, number, blob, fractions) in enumerate(rows):
                columns = self._layout(number).columns
                flat = store.decode_counts(blob, len(columns) * len(EXPONENTS), "hists")
                counts[i, columns] = flat.reshape(len(columns), len(EXPONENTS))
                flat_fractions = store.decode(fractions, len(columns) * len(FORMATS), "hists")
                underflow[i, columns] = flat_fractions.reshape(len(columns), len(FORMATS))
            steps = np.array([row[1] for row in rows], dtype=np.int64)
            self._cache["histograms"] = (steps, counts, underflow)
        return self._cache["histograms"]

    def _layout(self, number: Any) -> Layout:
        if number not in self._layouts:
            raise HistoryError(f"[History] {str(self.path)!r}: layout {number!r} is missing")
        return self._layouts[number]


_PIECE = 1024
