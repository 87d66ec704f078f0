"""Aggregates of 16, 64, 256, … recorded steps, kept as a history grows.

Bucket `i` of level `k` covers the live rows ``[i * span, (i + 1) * span)`` with ``span = 16 * 4 ** (k - 1)``;
a bucket of level k + 1 is the sum of four of level k. Adding a row costs a few vector operations. A summary
reads the coarsest level that is fine enough, and for the end of the run, which no bucket covers yet, at most
three buckets of each finer level and 15 rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BASE = 16
FACTOR = 4

BODY_FIELDS = ("rms_sum", "rms_min", "rms_max", "finite", "nonfinite")


def span_of(level: int) -> int:
    """Rows that a bucket of a level covers; level 0 are the rows themselves."""
    return 1 if level == 0 else int(BASE * FACTOR ** (level - 1))


def levels_of(rows: int) -> range:
    """The levels of which `rows` rows complete a bucket."""
    top = 0
    while span_of(top + 1) <= rows:
        top += 1
    return range(1, top + 1)


@dataclass
class Bucket:
    """The aggregate of one or more consecutive rows."""

    rows: int
    body: NDArray[np.float32]
    """[BODY_FIELDS, N], the parameters in order of first appearance in the run."""

    def add(self, other: Bucket) -> None:
        """Add the bucket that follows; N may have grown."""
        self.rows += other.rows
        width = max(self.body.shape[1], other.body.shape[1])
        self.body, theirs = pad(self.body, width), pad(other.body, width)
        with np.errstate(over="ignore"):
            self.body[[0, 3, 4]] += theirs[[0, 3, 4]]
        self.body[1] = np.fmin(self.body[1], theirs[1])
        self.body[2] = np.fmax(self.body[2], theirs[2])

    def copy(self) -> Bucket:
        return Bucket(self.rows, self.body.copy())


def pad(body: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """A body widened by columns of parameters that did not exist yet."""
    if body.shape[1] == width:
        return body
    wider = np.zeros((len(BODY_FIELDS), width), dtype=np.float32)
    wider[1:3] = np.nan
    wider[:, : body.shape[1]] = body
    return wider


def aggregate(rms: NDArray[np.floating[Any]], nonfinite: NDArray[np.int64] | None) -> Bucket:
    """The bucket of K consecutive rows.

    Args:
        rms: [K, N]; NaN where there was no gradient, or it held NaN.
        nonfinite: [K, N]; None if all are zero.
    """
    rms = rms.astype(np.float32, copy=False)
    body = np.zeros((len(BODY_FIELDS), rms.shape[1]), dtype=np.float32)
    finite = np.isfinite(rms)
    if finite.all():
        body[0], body[1], body[2], body[3] = rms.sum(axis=0), rms.min(axis=0), rms.max(axis=0), len(rms)
    else:
        body[0] = np.where(finite, rms, 0.0).sum(axis=0)
        body[1] = np.fmin.reduce(np.where(finite, rms, np.float32(np.nan)), axis=0)
        body[2] = np.fmax.reduce(np.where(finite, rms, np.float32(np.nan)), axis=0)
        body[3] = finite.sum(axis=0)
    if nonfinite is not None:
        body[4] = nonfinite.sum(axis=0)
    return Bucket(len(rms), body)


class Pyramid:
    """The incomplete buckets, one per level."""

    def __init__(self) -> None:
        self.rows = 0
        self.open: dict[int, Bucket] = {}

    def copy(self) -> Pyramid:
        other = Pyramid()
        other.rows, other.open = self.rows, {level: bucket.copy() for level, bucket in self.open.items()}
        return other

    def room(self) -> int:
        """How many more rows complete the bucket of level 1."""
        return BASE - self.rows % BASE

    def add(self, rows: Bucket) -> list[tuple[int, int, Bucket]]:
        """Add the aggregate of at most `room()` rows; returns the completed (level, index, bucket)s."""
        self.rows += rows.rows
        done: list[tuple[int, int, Bucket]] = []
        level, part = 1, rows
        while True:
            if level in self.open:
                self.open[level].add(part)
            else:
                self.open[level] = part.copy()
            if self.rows % span_of(level):
                return done
            part = self.open.pop(level)
            done.append((level, self.rows // span_of(level) - 1, part))
            level += 1

    def missing(self, rows: int) -> list[tuple[int, int, int]]:
        """What `restore` needs: (level, first, end) of the parts of each incomplete bucket, in row order.
        Level 0 are rows."""
        parts: list[tuple[int, int, int]] = []
        for level in range(1, 64):
            span, below = span_of(level), span_of(level - 1)
            first = rows // span * span // below
            end = rows // below
            if end > first:
                parts.append((level - 1, first, end))
            if span > rows:
                break
        return parts

    def restore(self, rows: int, parts: dict[int, list[Bucket]]) -> None:
        """Continue after `rows` rows, given the parts that `missing` named, by level."""
        self.rows, self.open = rows, {}
        for below, buckets in parts.items():
            for bucket in buckets:
                if below + 1 in self.open:
                    self.open[below + 1].add(bucket)
                else:
                    self.open[below + 1] = bucket.copy()
