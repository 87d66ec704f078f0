"""`Summary`: a whole run in a few hundred points, from the aggregates kept while it was recorded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradkern.history.format import HistoryError
from gradkern.history.layers import groups_of, roots_of_mean_squares
from gradkern.history.pyramid import BODY_FIELDS, Bucket, Pyramid, aggregate, pad, span_of

if TYPE_CHECKING:
    from gradkern.history.recorded import Recorded

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Summary:
    """A run in P points, each an aggregate of consecutive recorded steps.

    Means, minima and maxima are those of the finite values, or NaN if there are none.
    """

    names: tuple[str, ...]
    """N parameters (or modules)."""
    step0: NDArray[np.int64]
    """[P] first step of each point."""
    step1: NDArray[np.int64]
    """[P] last step of each point."""
    rows: NDArray[np.int64]
    """[P] number of recorded steps of each point."""
    time: Floats
    """[P] time of the first step of each point."""
    total_norm: Floats
    """[P] mean."""
    total_norm_min: Floats
    total_norm_max: Floats
    total_norm_nonfinite: NDArray[np.int64]
    """[P] number of steps whose total norm was NaN or inf."""
    loss: Floats
    """[P] mean."""
    loss_min: Floats
    loss_max: Floats
    lr: Floats
    """[P] learning rate of the first group at the last step of each point."""
    clip_rate: Floats
    """[P] fraction of the steps that were clipped; NaN without clipping."""
    clip_coef_min: Floats
    skipped: NDArray[np.int64]
    """[P] number of skipped steps."""
    rms: Floats
    """[P, N] mean."""
    rms_min: Floats
    rms_max: Floats
    nonfinite: NDArray[np.int64]
    """[P, N] number of inf and NaN elements."""

    def __len__(self) -> int:
        return len(self.step0)


def read_summary(history: Recorded, max_points: int, depth: int | None = None) -> Summary:
    """See `History.summary`."""
    rows, width = len(history), len(history.names)
    level = 0
    while rows > 4 * max_points * span_of(level):
        level += 1
    if history.shows_superseded:
        level = 0  # aggregates are of live rows
    span = span_of(level)
    count = -(-rows // span)
    merge = -(-count // max_points)
    points: list[Bucket] = []
    for index, bucket in enumerate(_buckets(history, level, rows, width)):
        if index % merge:
            points[-1].add(bucket)
        else:
            points.append(bucket)
    return _as_summary(history, points, width, depth)


def _buckets(history: Recorded, level: int, rows: int, width: int) -> Iterator[Bucket]:
    """The buckets of a level, and one more for the end of the run that they do not cover."""
    if level == 0:
        yield from row_buckets(history, 0, rows)
        return
    complete = rows // span_of(level)
    for first in range(0, complete, 256):
        yield from stored_buckets(history, level, first, min(first + 256, complete), width)
    parts = [part for part in Pyramid().missing(rows) if part[0] < level]
    tail: Bucket | None = None
    for below, first, end in parts[::-1]:  # coarse parts come first in time
        finer = (
            stored_buckets(history, below, first, end, width) if below else row_buckets(history, first, end)
        )
        for bucket in finer:
            if tail is None:
                tail = bucket
            else:
                tail.add(bucket)
    if tail is not None:
        yield tail


def stored_buckets(history: Recorded, level: int, first: int, end: int, width: int) -> Iterator[Bucket]:
    """Aggregates from the file, checked."""
    query = "SELECT body FROM summaries WHERE level=? AND idx>=? AND idx<? ORDER BY idx"
    found = history.connection.execute(query, (level, first, end)).fetchall()
    if len(found) != end - first:
        raise HistoryError(f"[History.summary] {str(history.path)!r}: aggregates are missing")
    for (body,) in found:
        yield Bucket(span_of(level), decode_body(body, width))


def decode_body(body: Any, width: int) -> NDArray[np.float32]:
    """[BODY_FIELDS, width] from the row of a bucket in the file; a copy."""
    fields = len(BODY_FIELDS)
    if not isinstance(body, bytes) or len(body) % (4 * fields) or len(body) > 4 * fields * width:
        raise HistoryError("[History.summary] a damaged aggregate")
    return pad(np.frombuffer(body, dtype="<f4").reshape(fields, -1), width).copy()


def row_buckets(history: Recorded, first: int, end: int) -> Iterator[Bucket]:
    """Single rows as buckets."""
    for start in range(first, end, 512):
        stop = min(start + 512, end)
        columns = history.window(start, stop)
        for row in range(stop - start):
            yield aggregate(columns.rms[row : row + 1], columns.nonfinite[row : row + 1])


def _as_summary(history: Recorded, points: list[Bucket], width: int, depth: int | None) -> Summary:
    body = np.array([pad(p.body, width) for p in points]).reshape(len(points), len(BODY_FIELDS), width)
    b = dict(zip(BODY_FIELDS, np.moveaxis(body, 1, 0)))
    names: tuple[str, ...] = history.names
    with np.errstate(divide="ignore", invalid="ignore"):
        rms = np.where(b["finite"] > 0, b["rms_sum"] / b["finite"], np.nan)
    low, high, bad = b["rms_min"], b["rms_max"], b["nonfinite"]
    if depth is not None:
        names, (rms, low, high, bad) = _by_layer(history, depth, rms, low, high, bad)
    rows = np.array([p.rows for p in points], dtype=np.int64)
    return Summary(
        names=names,
        rows=rows,
        rms=rms,
        rms_min=low,
        rms_max=high,
        nonfinite=bad.astype(np.int64),
        **_step_numbers(history, rows),
    )


def _step_numbers(history: Recorded, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """The plain numbers of each point. They are all in memory, so no aggregates are kept of them."""
    ends = np.cumsum(rows)
    starts = ends - rows
    norm, loss = _Spread.of(history.total_norm, starts), _Spread.of(history.loss, starts)
    with_coef = np.add.reduceat(history.has_coef, starts, dtype=np.int64)
    coef = np.where(history.has_coef, history.clip_coef, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        clip_rate = np.add.reduceat(history.clipped, starts, dtype=np.int64) / with_coef
    return {
        "step0": np.minimum.reduceat(history.steps, starts),
        "step1": np.maximum.reduceat(history.steps, starts),
        "time": history.time[starts],
        "total_norm": norm.mean,
        "total_norm_min": norm.low,
        "total_norm_max": norm.high,
        "total_norm_nonfinite": rows - norm.known,
        "loss": loss.mean,
        "loss_min": loss.low,
        "loss_max": loss.high,
        "lr": history.lr[ends - 1],
        "clip_rate": clip_rate,
        "clip_coef_min": np.fmin.reduceat(coef, starts),
        "skipped": np.add.reduceat(history.skipped, starts, dtype=np.int64),
    }


class _Spread(NamedTuple):
    """Mean, minimum and maximum of the finite values of each point; NaN where there are none."""

    mean: Floats
    low: Floats
    high: Floats
    known: NDArray[np.int64]
    """Number of finite values."""

    @classmethod
    def of(cls, values: NDArray[np.float64], starts: NDArray[np.int64]) -> _Spread:
        finite = np.isfinite(values)
        known = np.where(finite, values, np.nan)
        count = np.add.reduceat(finite, starts, dtype=np.int64)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            mean = np.add.reduceat(np.where(finite, values, 0.0), starts) / count
        return cls(mean, np.fmin.reduceat(known, starts), np.fmax.reduceat(known, starts), count)


def _by_layer(
    history: Recorded, depth: int, rms: Floats, low: Floats, high: Floats, bad: Floats
) -> tuple[tuple[str, ...], tuple[Floats, Floats, Floats, Floats]]:
    """The points of modules, from those of their parameters."""
    groups = groups_of(history.names, depth, history.repeated)

    def combined(values: Floats) -> Floats:
        return roots_of_mean_squares(values, np.isfinite(values), history.numel[None], groups)[0]

    counts = np.stack([bad[:, columns].sum(axis=1) for columns in groups.values()], axis=1)
    return tuple(groups), (combined(rms), combined(low), combined(high), counts)
