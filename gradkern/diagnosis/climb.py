"""`climbs` and `falls_without_end`: whether the loss, or a part of it, has the wrong sign."""

from __future__ import annotations

import numpy as np

from gradkern.diagnosis.case import FEW_STEPS, Case, Floats
from gradkern.diagnosis.losses import NEVER_NEGATIVE
from gradkern.diagnosis.optimizer import grows_by_itself
from gradkern.diagnosis.trend import trend_of

#: ‖Δw‖ / ‖w‖ of a step from which it is not clearly healthy.
MOVED = 0.1
#: The same of the first steps up a loss, with which it still rises steadily. Measured: 0.11 … 0.12 in four
#: runs whose rise the steps explain; in none whose rate is too large do such steps explain it.
CLIMBING = 0.2
#: A loss changes by at most ``‖g‖ ‖Δw‖`` at a small step. A wrong sign raises it by a good part of the sum
#: over the steps: by 0.25 (Adam) to 1.4 of it (SGD; measured in 14 runs). Steps that overshoot go to and fro,
#: so that they raise it by less than 0.2 of the sum (8 runs); gradients that add up, by less than 0.1 (25).
ALONG = 0.2
#: What rises by several times the sum is not raised by the steps, but by data that become harder.
BEYOND = 3.0
#: Part of the steps before the onset that are looked at: the last ones, where noise of batches counts least.
LATE = 2 / 3
#: A positive loss that falls below zero by this many times its first value and its first changes has no lower
#: bound. Measured with a penalty or an activation praised: 100 … 8,000 times; healthy (reinforcement
#: learning): up to 23 times.
BELOW = 40.0
#: A loss that is negative from the start has no lower bound if it falls this far. The log-likelihood of an
#: image of 3,072 numbers in float32 is at most 2.7e5.
BOTTOMLESS = 1e6
#: What is added to a loss of a kind that is never negative is negative, if the recorded loss ends this many
#: times as far below zero as it started from it, and falls this much faster in the second half of the run.
#: Measured with a penalty praised: 10 … 37 and 4.5 … 9. What is learned is learned more and more slowly.
FARTHER, FASTER = 3.0, 1.5


def falls_without_end(case: Case) -> bool:
    """Whether a part of the loss has the wrong sign: it is positive and falls far below zero, falls
    further than any score, or cannot be negative and falls below zero faster and faster."""
    losses = case.evidence.loss[np.isfinite(case.evidence.loss)]
    if not case.trend.known:
        return False
    bottomless = case.trend.lowest < -BOTTOMLESS * max(1.0, abs(float(losses[0])))
    return bottomless or _falls_far(case, losses) or _falls_faster(case)


def _falls_far(case: Case, losses: Floats) -> bool:
    """Whether a positive loss falls far below zero and does not come back. The surrogate loss of a policy is
    zero, up to rounding, at the first step with each batch, and of ordinary size a step later."""
    scale = max(float(losses[0]), float(np.median(np.abs(np.diff(losses[:FEW_STEPS])))))
    deep = losses[: int(np.argmin(losses)) + 1]
    returns = float(deep[-max(len(deep) // 4, 1) :].max()) > -scale
    return bool(losses[0] > 0 and case.trend.lowest < -BELOW * scale and not returns)


def is_below_zero(case: Case) -> bool:
    """Whether a loss that is never negative falls below zero: a part of it is subtracted, and grows."""
    trend, name = case.trend, case.model.loss
    return name.startswith(NEVER_NEGATIVE) and trend.known and trend.fell and trend.end < 0


def _falls_faster(case: Case) -> bool:
    trend, losses = case.trend, case.evidence.loss[np.isfinite(case.evidence.loss)]
    if not case.model.loss.startswith(NEVER_NEGATIVE) or not (trend.fell and trend.kept):
        return False
    middle = float(np.median(np.array_split(losses, 5)[2]))
    faster = middle - trend.end >= FASTER * (trend.start - middle)
    return faster and -trend.end >= FARTHER * abs(trend.start)


def climbs(case: Case, onset: int) -> bool:
    """Whether the loss rises from the first steps on, which are small, by what steps up the gradient explain.

    Args:
        onset: the row at which the gradient has grown.
    """
    e = case.evidence
    early = case.movement[e.update_steps <= e.steps[min(3, len(e.steps) - 1)]]
    early = early[np.isfinite(early)]
    losses = e.loss[: max(onset, FEW_STEPS)]
    if not (early > 0).any() or early.max() >= CLIMBING or grows_by_itself(case):
        return False
    if not np.isfinite(losses).all() or not trend_of(losses).rose:
        return False
    part = (losses[1:] - losses[0]) / _reach(case, len(losses) - 1)
    return ALONG <= float(np.median(part[int(len(part) * (1 - LATE)) :])) <= BEYOND


def _reach(case: Case, count: int) -> Floats:
    """[count] sum of ``‖g‖ ‖Δw‖`` over the first steps, by which they can change the loss.

    The length of a step is interpolated between those at which it was measured. It grows at most as the
    gradient has grown since (as with SGD): the last of them may be that of a run thrown off its course.
    """
    e, norm = case.evidence, case.evidence.total_norm[:count]
    length = case.movement * case.weight_size
    known = np.isfinite(length) & (length > 0)
    at, length = np.searchsorted(e.steps, e.update_steps[known]), length[known]
    rows = np.arange(count)
    last = np.maximum(np.searchsorted(at, rows, side="right") - 1, 0)
    grown = np.maximum(norm / e.total_norm[at[last]], 1.0)
    lengths = np.minimum(np.exp(np.interp(rows, at, np.log(length))), length[last] * grown)
    reach: Floats = np.cumsum(norm * lengths * np.append(1, np.diff(e.steps[:count])))
    return reach
