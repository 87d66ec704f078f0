"""Aggregates of 16, 64, 256, … recorded steps, kept as a history grows.

Bucket `i` of level `k` covers the live rows ``[i * span, (i + 1) * span)`` with
``span = 16 * 4 ** (k - 1)``; a bucket of level k + 1 is the sum of four of level k. Adding a row
costs a few vector operations; a report reads the coarsest level that is fine enough, plus at most
three buckets of each finer level and 15 rows for the end that no bucket covers yet.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BASE = 16
FACTOR = 4

HEAD_FIELDS = (
    "rows",
    "time0",
    "time1",
    "norm_sum",
    "norm_min",
    "norm_max",
    "norm_bad",
    "loss_sum",
    "loss_min",
    "loss_max",
    "loss_count",
    "clipped",
    "with_coef",
    "coef_min",
    "skipped",
    "lr",
)
BODY_FIELDS = ("rms_sum", "rms_min", "rms_max", "finite", "nonfinite")

_H = {name: i for i, name in enumerate(HEAD_FIELDS)}
_MIN = [_H["time0"], _H["norm_min"], _H["loss_min"], _H["coef_min"]]
_MAX = [_H["time1"], _H["norm_max"], _H["loss_max"]]
_SUM = [
    _H[n]
    for n in ("rows", "norm_sum", "norm_bad", "loss_sum", "loss_count", "clipped", "with_coef", "skipped")
]


def span_of(level: int) -> int:
    """How many rows a bucket of a level covers; level 0 is the rows themselves."""
    return 1 if level == 0 else int(BASE * FACTOR ** (level - 1))


def levels_of(rows: int) -> range:
    """The levels that `rows` rows can have complete buckets of."""
    top = 0
    while span_of(top + 1) <= rows:
        top += 1
    return range(1, top + 1)


@dataclass
class Bucket:
    """The aggregate of some consecutive rows; of one row at least."""

    step0: int
    step1: int
    head: NDArray[np.float64]
    """[HEAD_FIELDS]"""
    body: NDArray[np.float32]
    """[BODY_FIELDS, N]: columns in order of first appearance in the run."""

    def add(self, other: Bucket) -> None:
        """Take in the bucket that follows; N may have grown."""
        self.step0, self.step1 = min(self.step0, other.step0), max(self.step1, other.step1)
        mine, head = self.head, other.head
        mine[_SUM] += head[_SUM]
        mine[_MIN] = np.fmin(mine[_MIN], head[_MIN])
        mine[_MAX] = np.fmax(mine[_MAX], head[_MAX])
        mine[_H["lr"]] = head[_H["lr"]]
        width = max(self.body.shape[1], other.body.shape[1])
        self.body, theirs = pad(self.body, width), pad(other.body, width)
        with np.errstate(over="ignore"):
            self.body[[0, 3, 4]] += theirs[[0, 3, 4]]
        self.body[1] = np.fmin(self.body[1], theirs[1])
        self.body[2] = np.fmax(self.body[2], theirs[2])

    def copy(self) -> Bucket:
        return dataclasses.replace(self, head=self.head.copy(), body=self.body.copy())


def pad(body: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """A body with more columns: parameters that were not there yet."""
    if body.shape[1] == width:
        return body
    wider = np.zeros((len(BODY_FIELDS), width), dtype=np.float32)
    wider[1:3] = np.nan
    wider[:, : body.shape[1]] = body
    return wider


@dataclass
class Rows:
    """K consecutive recorded rows, as plain arrays."""

    step: NDArray[np.int64]
    time: NDArray[np.float64]
    total_norm: NDArray[np.float64]
    loss: NDArray[np.float64]
    """NaN where not given."""
    clip_coef: NDArray[np.float64]
    has_coef: NDArray[np.bool_]
    skipped: NDArray[np.bool_]
    lr: NDArray[np.float64]
    rms: NDArray[np.floating[Any]]
    """[K, N]; NaN where there was no gradient, or it held NaN."""
    nonfinite: NDArray[np.int64] | None
    """[K, N]; None if all are zero."""

    def bucket(self) -> Bucket:
        """Their aggregate."""
        rms = self.rms.astype(np.float32, copy=False)
        body = np.zeros((len(BODY_FIELDS), rms.shape[1]), dtype=np.float32)
        finite = np.isfinite(rms)
        if finite.all():
            body[0], body[1], body[2], body[3] = rms.sum(axis=0), rms.min(axis=0), rms.max(axis=0), len(rms)
        else:
            body[0] = np.where(finite, rms, 0.0).sum(axis=0)
            body[1] = np.fmin.reduce(np.where(finite, rms, np.float32(np.nan)), axis=0)
            body[2] = np.fmax.reduce(np.where(finite, rms, np.float32(np.nan)), axis=0)
            body[3] = finite.sum(axis=0)
        if self.nonfinite is not None:
            body[4] = self.nonfinite.sum(axis=0)
        return Bucket(int(self.step.min()), int(self.step.max()), self._head(), body)

    def _head(self) -> NDArray[np.float64]:
        # Python's own sums and extremes: of sixteen numbers they cost a fraction of NumPy's.
        norms = [x for x in self.total_norm.tolist() if math.isfinite(x)]
        losses = [x for x in self.loss.tolist() if math.isfinite(x)]
        coefs = self.clip_coef[self.has_coef].tolist()
        values = (
            len(self.step),
            self.time[0],
            self.time[-1],
            *_spread(norms),
            len(self.step) - len(norms),
            *_spread(losses),
            len(losses),
            sum(not x >= 1 for x in coefs),
            len(coefs),
            min((x for x in coefs if not math.isnan(x)), default=math.nan),
            int(self.skipped.sum()),
            self.lr[-1],
        )
        return np.array(values, dtype=np.float64)


def _spread(values: list[float]) -> tuple[float, float, float]:
    """(sum, smallest, largest)"""
    return sum(values), min(values, default=math.nan), max(values, default=math.nan)


class Pyramid:
    """The buckets that are still being filled, one a level, and which ones are complete."""

    def __init__(self) -> None:
        self.rows = 0
        self.open: dict[int, Bucket] = {}

    def copy(self) -> Pyramid:
        other = Pyramid()
        other.rows, other.open = self.rows, {level: bucket.copy() for level, bucket in self.open.items()}
        return other

    def room(self) -> int:
        """How many rows complete the bucket of level 1."""
        return BASE - self.rows % BASE

    def add(self, rows: Bucket) -> list[tuple[int, int, Bucket]]:
        """Take in the aggregate of at most `room()` rows; returns the (level, index, bucket)s completed."""
        self.rows += int(rows.head[0])
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
        """What `restore` needs: (level, first, end) of the parts of each open bucket, in row order.

        Level 0 means rows.
        """
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
        """Start again after `rows` rows from the parts that `missing` named, by their level."""
        self.rows, self.open = rows, {}
        for below, buckets in parts.items():
            for bucket in buckets:
                if below + 1 in self.open:
                    self.open[below + 1].add(bucket)
                else:
                    self.open[below + 1] = bucket.copy()
