"""Rules for the total norm over time: growth without end, a sum of gradients, an explosion at the start."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gradkern.diagnosis.case import FEW_STEPS, Case, Floats
from gradkern.diagnosis.climb import MOVED, climbs, falls_without_end
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.gain import classes_of, input_rms, possible_classes
from gradkern.diagnosis.rules.inputs import large_inputs, large_targets
from gradkern.diagnosis.rules.uphill import climbed, negated
from gradkern.diagnosis.sums import starts_as_a_sum
from gradkern.diagnosis.trend import trend_of

#: Growth of the norm at its peak, and at the end, that counts as an explosion.
GROWTH, STILL = 100.0, 33.0
#: Growth that counts wherever the norm ends, if this many twentieths of the run have it: what was thrown so
#: far may end where all units are saturated.
FAR, FAR_LONG = 1e4, 3
#: Loss at the end over that at the start of a diverged run (a generator that loses to its critic has 10).
RUINED = 30.0
#: Norm of the first steps over the later ones, and ‖Δw‖ / ‖w‖ of a first step, for an explosion at the start.
START = 100.0
THROWN = 0.3
#: Limits for a sum of gradients. SMOOTH and JITTER: the median change of log(norm) and its median absolute
#: deviation, both times three quarters of the steps (measured 0.01 … 3.2 and 0.01 … 2.7; no healthy run has
#: both). EARLY, SUMMED: growth of the norm up to steps 5 to 8 (a sum of n has sqrt(n) or more), and in all.
#: HIGH: norm at the end over the largest.
SMOOTH, JITTER, EARLY, SUMMED, HIGH = 4.0, 2.0, 1.5, 5.0, 0.6
#: Steps from which a smooth second half is not due to chance.
SETTLED = 40
#: While the loss falls, a norm may grow as smoothly when a run leaves a plateau (measured: up to 13 times;
#: sums grow 28 times and more).
LEFT_PLATEAU = 20.0
#: rms of inputs that explains a first gradient that is too large, if the loss falls a hundredfold too.
INPUT = 100.0
#: A classifier has converged if its loss starts below USUAL * ln(classes) and ends below CONVERGED of its
#: start.
USUAL, CONVERGED = 3.0, 0.05


def exploding_over_time(case: Case) -> list[Finding]:
    """The norm grows a hundredfold and the loss with it, or starts a hundred times too large, or the inputs
    or the targets are too large."""
    if reversed_ := negated(case):
        return reversed_
    norm = _common_norm(case)
    at = np.flatnonzero(np.isfinite(norm) & (norm > 0))
    if len(at) < FEW_STEPS:
        return []
    values = norm[at]
    over_time = _summing(case, at, values) or _growing(case, at, values) or _starting(case, at, values)
    return over_time or climbed(case) or large_inputs(case) or large_targets(case)


def _common_norm(case: Case) -> Floats:
    """The total norm without parameters that no optimizer moves: zero_grad() does not clear their gradients,
    so that they accumulate."""
    e = case.evidence
    if not case.unmoved.any():
        return e.total_norm
    norm = np.full(len(e.steps), np.nan)
    squares = np.nan_to_num(e.rms[:, ~case.unmoved].astype(np.float64)) ** 2 * e.numel[~case.unmoved]
    norm[e.rows] = np.sqrt(squares.sum(axis=1))
    return norm


def _summing(case: Case, at: NDArray[np.int64], values: Floats) -> list[Finding]:
    """Gradients accumulate over steps, because they are not cleared: the norm changes by 1/t at step t."""
    if len(values) < 2 * FEW_STEPS:
        return []
    starts, level, settled = starts_as_a_sum(case), _is_level(case), len(values) >= SETTLED
    both = settled and starts_as_a_sum(case, dips=1) and _is_smooth(values, SMOOTH)
    growth = float(np.median(values[-5:])) / float(values[0])
    high = float(np.median(values[-max(len(values) // 10, 3) :])) >= HIGH * float(values.max())
    if not starts and climbs(case, FEW_STEPS):
        return []
    if values.max() > GROWTH * values[-5:].min():  # a sum may shrink, but not to a hundredth
        return []
    if not (high or both) or growth < (SUMMED if level or both else LEFT_PLATEAU):
        return []
    if not (both or (_is_smooth(values) and (starts or settled)) or (starts and level)):
        return []
    why = (
        f"The norm grew {growth:.3g} times and as smoothly as the norm of a sum does: each gradient is added "
        "to those before it, because zero_grad() is not called."
    )
    severity = "warning" if case.trend.fell else "severe"
    numbers = {
        "norm_at_start": float(values[0]),
        "norm_at_end": float(values[-1]),
        "growth": growth,
        "summed": 1.0,
    }
    return [case.finding("exploding_gradient", severity, why, numbers, last=int(case.evidence.steps[at[-1]]))]


def _is_smooth(values: Floats, jitter: float = JITTER) -> bool:
    """Whether the norm changes by 1/t at nearly all steps t of the second half. A run that starts as a sum
    does may have more jitter."""
    half, count = np.diff(np.log(values[len(values) // 2 :])), 0.75 * len(values)
    smooth = float(np.median(np.abs(half))) * count <= SMOOTH
    smooth &= float(np.median(np.abs(half - np.median(half)))) * count <= jitter
    return smooth and float(np.median(values[4:8])) >= EARLY * values[0]


def _is_level(case: Case) -> bool:
    """Whether the loss is known and does not fall in the second half."""
    losses = case.evidence.loss[np.isfinite(case.evidence.loss)]
    later = trend_of(losses[len(losses) // 2 :])
    return later.known and not later.fell


def _growing(case: Case, at: NDArray[np.int64], values: Floats) -> list[Finding]:
    e, trend = case.evidence, case.trend
    if not _has_effect(case):
        return []
    base = float(np.median(values[: max(min(10, len(values) // 5), 2)]))
    tail = values[-max(len(values) // 10, 3) :]
    windows = [float(np.median(w)) for w in np.array_split(values, min(20, len(values)))]
    peak, end = max(max(windows), float(np.median(tail))), float(np.median(tail))
    diverged = not np.isfinite(e.total_norm).all() and float(tail[-1]) >= GROWTH * base
    grew = diverged or (peak >= GROWTH * base and end >= STILL * base)
    first = float(np.median(values[:3]))
    if sum(window >= FAR * first for window in windows) >= FAR_LONG:  # may have grown in less than ten steps
        grew, base = True, min(base, first)
    given_back = trend.end - trend.lowest > 0.5 * abs(trend.start - trend.lowest) + 3 * trend.error
    endless = falls_without_end(case)
    worse = endless or trend.rose or (given_back and not trend.fell) if trend.known else diverged
    if not grew or not worse:
        return []
    peak = max(peak, float(tail[-1]))
    onset = int(e.steps[at[np.flatnonzero(values >= 10 * base)[0]]])
    stayed = " and stayed there" if end >= STILL * base else ""
    course = "falls without end" if endless else "got worse"
    why = f"The gradient norm grew from {base:.2g} to {peak:.2g}{stayed}, and the loss {course}."
    numbers = {"norm_at_start": base, "norm_at_end": end, "growth": peak / base}
    if climbs(case, int(np.searchsorted(e.steps, onset))):
        numbers["uphill"] = 1.0
    return [
        case.finding("exploding_gradient", "severe", why, numbers, first=onset, last=int(e.steps[at[-1]]))
    ]


def _has_effect(case: Case) -> bool:
    """Whether a growing norm has an effect: large steps or growing weights (an adaptive optimizer divides a
    large gradient by its own size), or a loss that rises far."""
    e, size = case.evidence, case.weight_size[np.isfinite(case.weight_size)]
    if not len(size) or not np.isfinite(e.total_norm).all():
        return True
    farthest = max(case.trend.end, case.trend.start - case.trend.lowest)  # also a part of the wrong sign
    if falls_without_end(case) or (case.trend.known and farthest > RUINED * abs(case.trend.start)):
        return True
    return bool(np.nanmax(np.append(case.movement, 0.0)) >= MOVED or size.max() >= 2 * size[0])


def _starting(case: Case, at: NDArray[np.int64], values: Floats) -> list[Finding]:
    e = case.evidence
    first, later = float(values[0]), float(np.median(values[len(values) // 2 :]))
    early = case.movement[e.update_steps <= e.steps[min(3, len(e.steps) - 1)]]
    thrown = bool(len(early)) and float(np.nanmax(np.append(early, 0.0))) >= THROWN
    losses = e.loss[np.isfinite(e.loss)]
    jumped = len(losses) > 4 and float(np.max(losses[1:5])) > 2 * abs(float(losses[0]))
    from_inputs = (
        input_rms(case) >= INPUT and float(losses[0]) > START * abs(case.trend.end) if len(losses) else False
    )
    if first < START * later or not (thrown or jumped or from_inputs) or _converged(case, thrown):
        return []
    until = np.flatnonzero(values < 10 * later)
    last = int(e.steps[at[until[0]]]) if len(until) else case.last_step
    why = (
        f"The first gradient has a norm of {first:.2g}, {first / later:.3g} times the norms of later steps: "
        "the first steps destroy the initial weights."
    )
    numbers = {"norm_at_start": first, "norm_later": later, "growth": first / later}
    severity = "warning" if case.trend.fell else "severe"
    return [case.finding("exploding_gradient", severity, why, numbers, last=last)]


def _converged(case: Case, thrown: bool) -> bool:
    """Whether norms fall because the loss does: it falls at once, or a classifier's starts near ln(classes)
    and falls nearly to zero. A loss of unknown kind may be one, unless the weights were thrown."""
    if case.falls_at_once:
        return True
    start, classes = case.trend.start, classes_of(case) if thrown else possible_classes(case)
    return bool(classes) and start < USUAL * math.log(classes) and case.trend.end < CONVERGED * start
