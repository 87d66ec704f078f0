"""`LossTrend`: whether the loss of a run falls, rises or stays level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradkern.diagnosis.evidence import RunEvidence

Floats = NDArray[np.floating[Any]]

#: A fall counts from this part of the initial loss, and from three standard errors.
LEAST_FALL, ERRORS = 0.02, 3.0
#: Parts take turns if the parameters with a gradient change at this share of the steps or more, and the most
#: frequent part has at least this share of the steps, and at least half of it in each fifth of the run.
CHANGES, TURN, FIFTHS, EVENLY = 0.15, 0.2, 5, 0.5
#: A run learns well if it lost four fifths of its first loss, and at most a tenth of that fall came back.
WELL, BACK = 0.8, 0.1


@dataclass(frozen=True)
class LossTrend:
    """The loss of a run in a few numbers; NaN where no loss was recorded."""

    start: float
    """Median of the first three losses."""
    end: float
    """Median of the last tenth of the losses."""
    lowest: float
    """Lowest of the medians of twenty windows."""
    error: float
    """Standard error of `end`, estimated from the differences of neighbouring losses."""
    count: int

    @property
    def known(self) -> bool:
        return self.count >= 8

    @property
    def fell(self) -> bool:
        """Whether the loss ended clearly below its start."""
        return self.start - self.end > max(ERRORS * self.error, LEAST_FALL * abs(self.start))

    @property
    def rose(self) -> bool:
        """Whether the loss ended clearly above its start."""
        return self.end - self.start > max(ERRORS * self.error, LEAST_FALL * abs(self.start))

    @property
    def kept(self) -> bool:
        """Whether the loss ended near its lowest value."""
        return self.end - self.lowest <= BACK * abs(self.start - self.lowest) + ERRORS * self.error

    @property
    def fall(self) -> float:
        """The fall of the loss as a part of the initial loss."""
        return (self.start - self.end) / abs(self.start) if self.start else float("nan")


def loss_trend(evidence: RunEvidence) -> LossTrend:
    """The trend of the losses of a run that can be compared."""
    return trend_of(comparable_losses(evidence))


def comparable_losses(evidence: RunEvidence) -> Floats:
    """All finite losses. Where parts are trained in turn (a generator and its critic), each by a loss of its
    own, those of the part that is trained most often."""
    turn = _turn(evidence.has_grad)
    loss = evidence.loss if turn is None else evidence.loss[evidence.rows[turn]]
    return loss[np.isfinite(loss)]


def _turn(has_grad: NDArray[np.bool_]) -> NDArray[np.int64] | None:
    """The rows in which the most frequent part is trained; None if parts do not take turns."""
    if not len(has_grad) or (has_grad == has_grad[0]).all():
        return None
    _, which, counts = np.unique(has_grad, axis=0, return_inverse=True, return_counts=True)
    which = which.reshape(-1)
    at = np.flatnonzero(which == counts.argmax())
    if np.mean(which[1:] != which[:-1]) < CHANGES or len(at) < TURN * len(which):
        return None
    each = np.bincount(at * FIFTHS // len(which), minlength=FIFTHS)
    return at if each.min() >= EVENLY * each.mean() else None


def trend_of(loss: Floats) -> LossTrend:
    """The trend of some losses."""
    count = len(loss)
    if not count:
        return LossTrend(np.nan, np.nan, np.nan, np.nan, 0)
    tail = loss[-max(count // 10, min(count, 5)) :]
    windows = [float(np.median(piece)) for piece in np.array_split(loss, min(20, count))]
    noise = 1.4826 * float(np.median(np.abs(np.diff(loss)))) / np.sqrt(2) if count > 1 else 0.0
    return LossTrend(
        start=float(np.median(loss[: min(3, count)])),
        end=float(np.median(tail)),
        lowest=min(windows),
        error=1.2533 * noise / float(np.sqrt(len(tail))),
        count=count,
    )
