"""`History`: what a run has recorded, while it is recorded or afterwards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradkern.monitor import database, store
from gradkern.monitor.columns import Columns, LayerColumns, roll_up
from gradkern.monitor.reader import Branch, names_file
from gradkern.monitor.step_numbers import StepNumbers
from gradkern.monitor.store import HistoryError
from gradkern.monitor.summary_reader import Summary, read_summary
from gradkern.names import as_depth

__all__ = ["Branch", "History"]

Floats = NDArray[np.floating[Any]]


class History(StepNumbers):
    """A recorded run. Arrays have T rows, the recorded steps, and N columns, the parameters.

    Only plain numbers of each step are read when it is opened; the [T, N] arrays are read when they
    are asked for, and kept until `refresh`. Reading changes nothing in the file, executes nothing from it
    and never disturbs the process that records. Beside a run that was not closed, or not while
    nobody read it, SQLite keeps its two files for a WAL.

    Where a run went back to an earlier step (a resume from a checkpoint), the steps recorded
    before and replaced afterwards are left out; ``History.open(run, superseded=True)`` shows every
    row in the order it was written.
    """

    @classmethod
    def open(cls, run_dir: str | os.PathLike[str], *, superseded: bool = False) -> History:
        """Open a run to read.

        Args:
            run_dir: the folder given to `GradMonitor` (or its history.db).
            superseded: show the rows that a later branch replaced, too.

        Raises:
            HistoryError: there is no run, or its file is damaged or something else; names the file.
        """
        connection = database.connect_reader(run_dir)
        folder = Path(run_dir)
        path = folder / store.DATABASE if folder.is_dir() else folder
        try:
            return cls(connection, path, superseded)
        except BaseException:
            connection.close()
            raise

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        return self._matrix("rms")

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

    @names_file
    def window(self, first: int, end: int) -> Columns:
        """The per-parameter columns of rows ``[first, end)`` only (negative: from the end), without
        reading the others. T is then the number of those rows."""
        first, end, _ = slice(first, end).indices(len(self))
        return self._read_columns(self._rows[first : max(first, end)], self.numel_rows(first, end))

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

    def summary(self, max_points: int = 1000, depth: int | None = None) -> Summary:
        """The whole run in at most `max_points` points, from aggregates kept while it was recorded.

        Args:
            max_points: how many points at most; a shorter run gives one a step.
            depth: roll parameters up to modules, as `layers`.

        Raises:
            ValueError: `max_points` is less than 1; `depth` is negative, or no integer.

        Notes:
            Never scans the whole: reads about ``4 * max_points`` aggregates and a short tail.
        """
        if max_points < 1:
            raise ValueError(f"[History.summary] max_points: expected at least 1, got {max_points}")
        return self._summary(max_points, as_depth("History.summary", depth))

    @names_file
    def _summary(self, max_points: int, depth: int | None) -> Summary:
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

        Raises:
            ValueError: `depth` is negative, or no integer.
        """
        return self._layers(as_depth("History.layers", depth))

    @names_file
    def _layers(self, depth: int | None) -> LayerColumns:
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

    def _matrix(self, name: str) -> NDArray[Any]:
        if "columns" not in self._cache:
            self._cache["columns"] = self.window(0, len(self))
        return getattr(self._cache["columns"], name)

    @names_file
    def _weights(self) -> tuple[NDArray[np.int64], NDArray[np.bool_], Floats, Floats]:
        if "weights" not in self._cache:
            ids, steps = self.live_rows("weights")
            exact = np.zeros(len(ids), dtype=bool)
            norms = np.full((len(ids), len(self.names)), np.nan, dtype=np.float32)
            ratios = norms.copy()
            found = self.read_rows("weights", "exact, weight_norm, ratio", ids)
            for i, (layout, every, norm, ratio) in enumerate(found):
                exact[i], columns = bool(every), layout.columns
                norms[i, columns] = store.decode(norm, len(columns), "weights")
                ratios[i, columns] = store.decode(ratio, len(columns), "weights")
            self._cache["weights"] = (steps, exact, norms, ratios)
        return self._cache["weights"]

    @names_file
    def _histograms(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
        if "histograms" not in self._cache:
            from gradkern.monitor.histogram import EXPONENTS, FORMATS

            ids, steps = self.live_rows("hists")
            width = len(self.names)
            counts = np.zeros((len(ids), width, len(EXPONENTS)), dtype=np.int64)
            underflow = np.full((len(ids), width, len(FORMATS)), np.nan, dtype=np.float32)
            found = self.read_rows("hists", "counts, underflow", ids)
            for i, (layout, blob, fractions) in enumerate(found):
                columns = layout.columns
                flat = store.decode_counts(blob, len(columns) * len(EXPONENTS), "hists")
                counts[i, columns] = flat.reshape(len(columns), len(EXPONENTS))
                flat_fractions = store.decode(fractions, len(columns) * len(FORMATS), "hists")
                underflow[i, columns] = flat_fractions.reshape(len(columns), len(FORMATS))
            self._cache["histograms"] = (steps, counts, underflow)
        return self._cache["histograms"]
