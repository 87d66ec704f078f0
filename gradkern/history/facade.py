"""`History`: a recorded run, while it is recorded or afterwards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from gradkern._util.names import as_depth
from gradkern.history import database, format
from gradkern.history.format import HistoryError
from gradkern.history.layers import LayerColumns, roll_up
from gradkern.history.reader import names_file
from gradkern.history.recorded import Recorded
from gradkern.history.summary import Summary, read_summary

__all__ = ["History"]


class History(Recorded):
    """A recorded run. Arrays have T rows, the recorded steps, and N columns, the parameters.

    Opening reads only the plain numbers of each step. The [T, N] arrays are read when they are first used,
    and kept until `refresh`. Reading executes nothing from the file, changes nothing in it (but rolls back
    what a killed process left half written), and does not disturb the process that records.

    Where a run went back to an earlier step (a resume from a checkpoint), the steps that were replaced are
    left out; ``History.open(run, superseded=True)`` shows every row in the order in which it was written.
    """

    @classmethod
    def open(cls, run_dir: str | os.PathLike[str], *, superseded: bool = False) -> History:
        """Open a run for reading.

        Args:
            run_dir: the folder given to `GradMonitor` (or its history.db).
            superseded: also show the rows that a later branch replaced.

        Raises:
            HistoryError: there is no run, its file is damaged or not a run, or a process holds it for more
                than 5 s; names the file.
        """
        connection = database.connect_reader(run_dir)
        folder = Path(run_dir)
        path = folder / format.DATABASE if folder.is_dir() else folder
        try:
            return cls(connection, path, superseded)
        except BaseException:
            connection.close()
            raise

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- views ----

    def summary(self, max_points: int = 1000, depth: int | None = None) -> Summary:
        """The whole run in at most `max_points` points, from aggregates kept while it was recorded.

        Args:
            max_points: the largest number of points; a shorter run has one per step.
            depth: roll parameters up to modules, as in `layers`.

        Raises:
            ValueError: `max_points` is less than 1; `depth` is negative, or no integer.

        Notes:
            Does not scan the run: reads about ``4 * max_points`` aggregates and a short tail.
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
            return read_summary(self, max_points, depth)  # the run went back to an earlier step meanwhile

    def layers(self, depth: int | None = None) -> LayerColumns:
        """Statistics of modules instead of parameters, as `GradStats.by_layer` has them.

        Args:
            depth: keep at most so many leading components of the module's name.

        Raises:
            ValueError: `depth` is negative, or no integer.
        """
        return self._layers(as_depth("History.layers", depth))

    @names_file
    def _layers(self, depth: int | None) -> LayerColumns:
        return roll_up(self, depth)

    # ---- for other programs ----

    def to_arrow(self) -> Any:
        """The run as a long `pyarrow.Table`: one line for each step and parameter that had a gradient.

        The columns are those of the step (step, time, loss, lr, total_norm, …), the parameter's (param, norm,
        rms, max_abs, nonfinite, zeros) and your own numbers ("extra/<name>").

        Raises:
            ImportError: pyarrow is not installed: ``pip install gradkern[export]``.
        """
        from gradkern.history.export import to_arrow

        return to_arrow(self)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """The table of `to_arrow` as a stream: ``polars.DataFrame(history)``."""
        from gradkern.history.export import arrow_reader

        return arrow_reader(self, "History").__arrow_c_stream__(requested_schema)

    def to_pandas(self) -> Any:
        """The table of `to_arrow` as a pandas.DataFrame; needs pandas, too."""
        from gradkern.history.export import to_pandas

        return to_pandas(self)

    def to_csv(self, file: str | os.PathLike[str]) -> None:
        """Write the table of `to_arrow` as CSV, a piece at a time.

        A name that a spreadsheet would take for a formula gets a quote in front.
        """
        from gradkern.history.export import to_csv

        to_csv(self, file)

    def to_parquet(self, file: str | os.PathLike[str]) -> None:
        """Write the table of `to_arrow` as Parquet, a piece at a time."""
        from gradkern.history.export import to_parquet

        to_parquet(self, file)

    def _repr_html_(self) -> str:
        """A short table for notebooks; names are escaped."""
        from gradkern.history.reprs import history_html

        return history_html(self)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Called by copies of every kind."""
        raise TypeError(
            "[History] copy: an open History holds a database and cannot be copied or serialized; keep its "
            "path and open it again with History.open"
        )

    def __repr__(self) -> str:
        if not len(self):
            return f"History({str(self.path)!r}: nothing recorded yet, {len(self.names)} parameters)"
        return (
            f"History({str(self.path)!r}: {len(self)} steps {self.steps[0]}–{self.steps[-1]}, "
            f"{len(self.names)} parameters, total_norm {self.total_norm[-1]:.4g}, "
            f"{np.count_nonzero(self.clipped)} clipped, {np.count_nonzero(self.skipped)} skipped)"
        )
