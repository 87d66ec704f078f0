"""`History`: a recorded run, which may still be growing."""

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
    """A recorded run as NumPy arrays: T rows, the recorded steps, and N columns, the parameters.

    Opening a run reads only what is one number per step. The [T, N] arrays are read on first use and
    kept until `refresh`. The run can be read while it is recorded. Nothing from the file is executed.

    Steps that were recorded again after going back to an earlier step (a resume from a checkpoint) have
    replaced the earlier rows. ``History.open(run, superseded=True)`` shows all rows in the order in which
    they were written.

    Examples:
        >>> history = History.open("runs/first")
        >>> history.steps, history.total_norm, history.rms  # [T], [T], [T, N]

    Notes:
        The file is not changed, with one exception: a transaction that a killed process left incomplete is
        rolled back.
    """

    @classmethod
    def open(cls, run_dir: str | os.PathLike[str], *, superseded: bool = False) -> History:
        """Open a run for reading.

        Args:
            run_dir: the folder given to `GradMonitor`, or its history.db.
            superseded: also show rows that were replaced.

        Raises:
            TypeError: `run_dir` is not a path.
            HistoryError: there is no run, the file is damaged or is not a run, or another process locks it
                for more than 5 s. The message names the file.
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
        """The whole run in at most `max_points` points.

        Args:
            max_points: the largest number of points. A shorter run has one point per step.
            depth: combine parameters to modules, as in `layers`. Default: one column per parameter.

        Returns:
            A `Summary`: means, minima and maxima of consecutive steps.

        Raises:
            ValueError: `max_points` is below 1, or `depth` is negative or not an integer.

        Notes:
            The time does not depend on the length of the run: about ``4 * max_points`` aggregates are read,
            which were written while the run was recorded.
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
        """Statistics of modules instead of parameters, as in `GradStats.by_layer`.

        Args:
            depth: keep at most this many leading components of the module's name. Default: all.

        Returns:
            `LayerColumns` with [T, L] arrays.

        Raises:
            ValueError: `depth` is negative or not an integer.
        """
        return self._layers(as_depth("History.layers", depth))

    @names_file
    def _layers(self, depth: int | None) -> LayerColumns:
        return roll_up(self, depth)

    # ---- for other programs ----

    def to_arrow(self) -> Any:
        """The run as a long `pyarrow.Table`: one line for each step and each parameter with a gradient.

        The columns are those of the step (step, time, loss, lr, total_norm, …), those of the parameter
        (param, norm, rms, max_abs, nonfinite, zeros) and your own numbers ("extra/<name>").

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
        """The table of `to_arrow` as a pandas.DataFrame. Needs pandas and pyarrow."""
        from gradkern.history.export import to_pandas

        return to_pandas(self)

    def to_csv(self, file: str | os.PathLike[str]) -> None:
        """Write the table of `to_arrow` as CSV, piece by piece. Needs pyarrow.

        A quote is put before names that a spreadsheet would take for a formula.
        """
        from gradkern.history.export import to_csv

        to_csv(self, file)

    def to_parquet(self, file: str | os.PathLike[str]) -> None:
        """Write the table of `to_arrow` as Parquet, piece by piece. Needs pyarrow."""
        from gradkern.history.export import to_parquet

        to_parquet(self, file)

    def _repr_html_(self) -> str:
        """A short table for notebooks; names are escaped."""
        from gradkern.history.reprs import history_html

        return history_html(self)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Called when a History is copied or serialized."""
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
