"""The last rows that were written, before they become aggregates: what a short step back takes off again."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

import numpy as np

from gradkern.history.pyramid import Bucket, Pyramid, aggregate
from gradkern.history.rows import StepRow, rms_of


class RecentRows:
    """The rows of the bucket that is being filled, or has just been: at most 16.

    Args:
        pyramid: the aggregates of all live rows so far.
        last: the step of the last one of them.
    """

    def __init__(self, pyramid: Pyramid, last: int) -> None:
        self._before, self._floor = pyramid, last
        self._rows: list[StepRow] = []
        self._after: Pyramid | None = None
        """With the rows, once they complete a bucket."""

    def add(self, row: StepRow, width: int) -> list[tuple[int, int, Bucket]]:
        """Take in the next row; returns the (level, index, bucket)s that it completes."""
        if self._after is not None:
            self._before, self._floor = self._after, self._rows[-1].step
            self._rows, self._after = [], None
        self._rows.append(row)
        if len(self._rows) < self._before.room():
            return []
        self._after = self._before.copy()
        return self._after.add(_bucket(self._rows, width))

    def back_to(self, step: int) -> tuple[int, int] | None:
        """Take off the rows from that step on.

        Returns:
            How many live rows stay, and the step of the last one; None if more rows than these would
            have to go.
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
    """(first, end) of the stretches of rows that have one layout."""
    first = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i].layout is not rows[first].layout:
            yield first, i
            first = i
