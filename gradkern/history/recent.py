"""`RecentRows`: the rows of the aggregate that is being filled, so that a short step back is cheap."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

import numpy as np

from gradkern.history.pyramid import Bucket, Pyramid, aggregate
from gradkern.history.rows import StepRow, rms_of


class RecentRows:
    """The rows of the bucket that is being filled, or was just completed: at most 16.

    Args:
        pyramid: the aggregates of all live rows so far.
        last: step of the last of these rows.
    """

    def __init__(self, pyramid: Pyramid, last: int) -> None:
        self._before, self._floor = pyramid, last
        self._rows: list[StepRow] = []
        self._after: Pyramid | None = None
        """The pyramid with these rows, if they complete a bucket."""

    def add(self, row: StepRow, width: int) -> list[tuple[int, int, Bucket]]:
        """Add the next row; returns the completed (level, index, bucket)s."""
        if self._after is not None:
            self._before, self._floor = self._after, self._rows[-1].step
            self._rows, self._after = [], None
        self._rows.append(row)
        if len(self._rows) < self._before.room():
            return []
        self._after = self._before.copy()
        return self._after.add(_bucket(self._rows, width))

    def back_to(self, step: int) -> tuple[int, int] | None:
        """Remove the rows from a step on.

        Returns:
            How many live rows remain, and the step of the last one; None if older rows would have to go, too.
        """
        if step <= self._floor:
            return None
        del self._rows[bisect.bisect_left(self._rows, step, key=lambda row: row.step) :]
        self._after = None
        last = self._rows[-1].step if self._rows else self._floor
        return self._before.rows + len(self._rows), last


def _bucket(rows: Sequence[StepRow], width: int) -> Bucket:
    """The aggregate of `rows`, the parameters in the run's order."""
    bad = None if all(r.nonfinite is None for r in rows) else np.zeros((len(rows), width), dtype=np.int64)
    stretches = list(_same_layout(rows))
    if len(stretches) == 1 and np.array_equal(rows[0].layout.columns, np.arange(width)):
        rms = rms_of(rows)
    else:
        rms = np.full((len(rows), width), np.nan, dtype=np.float32)
        for first, end in stretches:
            rms[first:end, rows[first].layout.columns] = rms_of(rows[first:end])
    if bad is not None:
        for i, row in enumerate(rows):
            if row.nonfinite is not None:
                bad[i, row.layout.columns] = row.nonfinite
    return aggregate(rms, bad)


def _same_layout(rows: Sequence[StepRow]) -> Iterator[tuple[int, int]]:
    """(first, end) of each stretch of rows with the same layout."""
    first = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i].layout is not rows[first].layout:
            yield first, i
            first = i
