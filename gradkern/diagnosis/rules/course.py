"""Rules for the total norm over time: growth without end, an explosion at the start, single spikes.

NaN and spikes do not enter a baseline. May be wrong for batches of very different sizes or difficulty.
Frequent spikes are regarded as noise of the run and not reported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from gradkern.diagnosis.case import FEW_STEPS, Case, Floats
from gradkern.diagnosis.climb import MOVED, climbs, falls_without_end
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.gain import classes_of, input_rms
from gradkern.diagnosis.rules.inputs import large_inputs, large_targets
from gradkern.diagnosis.rules.uphill import climbed
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
#: While the loss falls, a norm may grow as smoothly when a run leaves a plateau (measured: up to 13 times).
LEFT_PLATEAU = 30.0
#: rms of inputs that explains a first gradient that is too large, if the loss falls a hundredfold too.
INPUT = 100.0
#: A classifier has converged if its loss starts below USUAL * ln(classes) and ends below CONVERGED of its
#: start.
USUAL, CONVERGED = 3.0, 0.05
#: Steps of a baseline.
BASELINE = 64
#: A spike with a jump of the loss: its deviation in median absolute deviations, and the factor of the
#: baseline.
DEVIATIONS, TIMES = 8.0, 10.0
#: The factor of the baseline for a spike without a jump of the loss.
TIMES_ALONE = 100.0
#: Spikes at more than this part of the steps are noise.
COMMON = 0.02
#: A spike also exceeds twice the norm at the start of the run (converged runs have small norms), and three
#: times the 95th percentile (norms are heavy-tailed near the end of training; measured: 1.9).
OF_THE_START, OF_THE_RUN = 2.0, 3.0
#: A learning rate above its median until then by this factor has risen.
RISEN = 3.0
#: Weights that a spike threw are this many times as large (measured: 4 and more).
THREW = 2.0
#: It also exceeds the largest of the norms before by this factor (measured for heavy tails: 3.3).
OF_THE_LARGEST = 4.0


def exploding_over_time(case: Case) -> list[Finding]:
    """The norm grows a hundredfold and the loss with it, or starts a hundred times too large, or the inputs
    or the targets are too large."""
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
    both = starts and settled and _is_smooth(values, SMOOTH)
    growth = float(np.median(values[-5:])) / float(values[0])
    high = float(np.median(values[-max(len(values) // 10, 3) :])) >= HIGH * float(values.max())
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
    grew |= sum(window >= FAR * float(np.median(values[:3])) for window in windows) >= FAR_LONG
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
    if first < START * later or not (thrown or jumped or from_inputs) or _converged(case):
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


def _converged(case: Case) -> bool:
    """Whether norms fall because the loss does: it falls at once, or a classifier's starts near ln(classes)
    and falls nearly to zero."""
    if case.falls_at_once:
        return True
    start, classes = case.trend.start, classes_of(case)
    return bool(classes) and start < USUAL * math.log(classes) and case.trend.end < CONVERGED * start


def gradient_spike(case: Case) -> list[Finding]:
    """Single steps whose norm is far above those of the 64 steps before."""
    e = case.evidence
    norm = e.total_norm
    base = baseline(norm)
    usable = np.isfinite(norm) & np.isfinite(base) & (base > 0)
    usable[: BASELINE // 4] = False
    finite = norm[case.finite]
    if len(finite) < BASELINE // 4:
        return []
    start = OF_THE_START * float(np.median(finite[:20]))
    level = max(start, OF_THE_RUN * float(np.percentile(finite, 95)))
    with np.errstate(invalid="ignore", over="ignore"):
        far = np.flatnonzero(usable & (norm > TIMES * base) & (norm > level))
        onset = np.flatnonzero(usable & (norm > TIMES * base) & (norm > start))[:1]
    if not np.array_equal(far, onset) and _out_of_calm(case, onset, base) and _threw(case, int(onset[0])):
        far = onset  # what follows is its consequence
    if not len(far) or len(far) > max(COMMON * len(norm), 3):
        return []
    largest = [_largest_before(norm, i, far) for i in far.tolist()]
    alone = [i for i, before in zip(far.tolist(), largest) if norm[i] > OF_THE_LARGEST * before]
    spikes = [i for i in alone if norm[i] > TIMES_ALONE * base[i] or _shows_in_the_loss(case, i, base[i])]
    if not spikes:
        return []
    worst = max(spikes, key=lambda i: norm[i] / base[i])
    clipped = all(e.clip_coef[i] < 1 for i in spikes)
    layers = _most_raised(case, worst)
    why = (
        f"At step {e.steps[worst]} the norm was {norm[worst]:.3g}, {norm[worst] / base[worst]:.3g} times "
        f"that of the steps before{', and was clipped' if clipped else ''}. The run has {len(spikes)} such "
        "steps."
    )
    numbers = {"spikes": len(spikes), "largest": float(norm[worst]), "baseline": float(base[worst])}
    if _out_of_calm(case, spikes[:1], base):
        numbers["out_of_calm"] = 1.0
    first, last = int(e.steps[spikes[0]]), int(e.steps[spikes[-1]])
    severity = "info" if clipped else "warning"
    return [case.finding("gradient_spike", severity, why, numbers, layers=layers, first=first, last=last)]


def _out_of_calm(case: Case, at: Sequence[int] | NDArray[np.int64], base: Floats) -> bool:
    """Whether a step is a hundred times the baseline, no step before was large, and the learning rate had not
    risen, so that neither is the cause."""
    if not len(at) or not case.evidence.total_norm[at[0]] > TIMES_ALONE * base[at[0]]:
        return False
    e, i = case.evidence, int(at[0])
    moved = case.movement[e.update_steps < e.steps[i]]
    rates = e.lr[max(0, i - 1) : i + 1]
    risen = rates[np.isfinite(rates)] > RISEN * np.nanmedian(np.append(e.lr[: i + 1], np.nan))
    return bool((np.nan_to_num(moved) < MOVED).all()) and not risen.any()


def _threw(case: Case, i: int) -> bool:
    """Whether a step moved the weights by their size, or they are far larger, or not finite, at the first
    look after it. A look at the step itself has the weights before it, and its movement."""
    e, size = case.evidence, case.weight_size
    moved = case.movement[e.update_steps == e.steps[i]]
    if (moved >= THREW - 1).any():
        return True
    before, after = size[e.update_steps <= e.steps[i]], size[e.update_steps > e.steps[i]]
    return len(before) > 0 and len(after) > 0 and not after[0] < THREW * before[-1]


def _largest_before(norm: Floats, i: int, spikes: NDArray[np.int64]) -> float:
    """The largest norm of the 64 steps before, without spikes."""
    before = np.setdiff1d(np.arange(max(0, i - BASELINE), i), spikes)
    return float(np.nanmax(np.append(np.where(np.isfinite(norm[before]), norm[before], 0.0), 0.0)))


def baseline(norm: Floats) -> Floats:
    """[T] median of the 64 steps before each, without spikes and NaN."""
    clean = np.where(np.isfinite(norm), norm, np.nan).astype(np.float64)
    for _ in range(2):  # the second time without the spikes that the first found
        filled = _filled_forward(clean)
        padded = np.concatenate([np.full(BASELINE, filled[0] if len(filled) else 0.0), filled])
        base: Floats = np.median(sliding_window_view(padded, BASELINE)[: len(norm)], axis=1)
        count = min(BASELINE, len(base))
        base[:count] = [np.median(filled[: max(i, 1)]) for i in range(count)]
        with np.errstate(invalid="ignore"):
            clean = np.where(clean > TIMES * base, np.nan, clean)
    return base


def _filled_forward(values: Floats) -> Floats:
    """The values with NaN replaced by the last number before it."""
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return np.full(len(values), np.nan)
    place = np.searchsorted(known, np.arange(len(values)), side="right") - 1
    return values[known[np.maximum(place, 0)]]


def _shows_in_the_loss(case: Case, i: int, base: float) -> bool:
    """Whether the norm also deviates far from those before, and the loss jumps within three steps."""
    e = case.evidence
    before = e.total_norm[max(0, i - BASELINE) : i]
    before = before[np.isfinite(before) & (before <= TIMES * base)]
    if len(before) < BASELINE // 8:
        return False
    if e.total_norm[i] - base <= DEVIATIONS * 1.4826 * float(np.median(np.abs(before - base))):
        return False
    losses = e.loss[max(0, i - BASELINE) : i]
    losses = losses[np.isfinite(losses)]
    if len(losses) < BASELINE // 8:
        return False
    center = float(np.median(losses))
    spread = 1.4826 * float(np.median(np.abs(losses - center)))
    after = e.loss[i : i + 4]
    return bool(np.nanmax(np.append(after, -np.inf)) > center + max(DEVIATIONS * spread, 0.1 * abs(center)))


def _most_raised(case: Case, i: int) -> tuple[str, ...]:
    """The parameters that rose most, if only a few did."""
    e = case.evidence
    row = np.searchsorted(e.rows, i)
    if row >= len(e.rows) or e.rows[row] != i or row < 4:
        return ()
    before = e.rms[max(0, row - 16) : row]
    known = np.isfinite(before).any(axis=0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        rise = np.where(known, e.rms[row] / np.nanmedian(np.where(known, before, 1.0), axis=0), 0.0)
    rise = np.where(np.isfinite(rise), rise, 0.0)
    rose = np.flatnonzero(rise >= max(TIMES, float(rise.max()) / 10))
    return case.names(rose.tolist()) if 0 < len(rose) <= len(e.names) // 2 else ()
