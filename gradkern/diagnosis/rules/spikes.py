"""The rule for single steps whose norm is far above the others.

NaN and spikes do not enter a baseline. May be wrong for batches of very different sizes or difficulty.
Frequent spikes are regarded as noise of the run and not reported.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from gradkern.diagnosis.case import FEW_STEPS, Case, Floats
from gradkern.diagnosis.climb import MOVED
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.trend import trend_of

#: Steps of a baseline.
BASELINE = 64
#: A spike with a jump of the loss: its deviation in median absolute deviations, and the factor of the
#: baseline.
DEVIATIONS, TIMES = 8.0, 10.0
#: The factor of the baseline for a spike without a jump of the loss.
TIMES_ALONE = 100.0
#: Or this factor, and so many deviations of the logarithms of the norms before, with a loss above all of the
#: last `RECENT` ones by a tenth. Measured: a batch of noise 15 deviations; heavy tails of a healthy run,
#: whose loss contains a logarithm, 5. The cliffs of recurrent networks do not show in the loss.
TIMES_CALM, OF_CALM, LEAST_SPREAD, RECENT, ABOVE = 30.0, 10.0, 0.1, 16, 1.1
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
    jumps = [i for i in alone if _shows_in_the_loss(case, i, base[i])]
    spikes = [i for i in alone if i in jumps or _stands_out(case, i, base[i])]
    if not spikes:
        return []
    worst = max(spikes, key=lambda i: norm[i] / base[i])
    clipped = all(e.clip_coef[i] < 1 for i in spikes) and not jumps
    layers = _most_raised(case, worst)
    why = (
        f"At step {e.steps[worst]} the norm was {norm[worst]:.3g}, {norm[worst] / base[worst]:.3g} times "
        f"that of the steps before{', and was clipped' if e.clip_coef[worst] < 1 else ''}. The run has "
        f"{len(spikes)} such {'step' if len(spikes) == 1 else 'steps'}."
    )
    numbers = {"spikes": len(spikes), "largest": float(norm[worst]), "baseline": float(base[worst])}
    if _out_of_calm(case, spikes[:1], base):
        numbers["out_of_calm"] = 1.0
    first, last = int(e.steps[spikes[0]]), int(e.steps[spikes[-1]])
    severity = "info" if clipped else "warning"
    return [case.finding("gradient_spike", severity, why, numbers, layers=layers, first=first, last=last)]


def _stands_out(case: Case, i: int, base: float) -> bool:
    """Whether a norm is far above the baseline; or less far, but outside the spread of those before it, with
    a loss that is the largest for a while. Recurrent networks have cliffs, where the gradient alone is huge
    (Pascanu et al., "On the difficulty of training recurrent neural networks", 2013): the loss counts."""
    norm, loss = case.evidence.total_norm, case.evidence.loss
    recent = loss[max(0, i - RECENT) : i]
    recent = recent[np.isfinite(recent)]
    shows = len(recent) > 0 and bool(loss[i] > recent.max() + (ABOVE - 1) * abs(recent.max()))
    if norm[i] > TIMES_ALONE * base:
        return shows or not case.model.recurs
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(norm[max(0, i - BASELINE) : i] / base)
    spread = 1.4826 * float(np.median(np.abs(logs[np.isfinite(logs)])))
    far = norm[i] > TIMES_CALM * base and np.log(norm[i] / base) > OF_CALM * max(spread, LEAST_SPREAD)
    return shows and bool(far)


def _out_of_calm(case: Case, at: Sequence[int] | NDArray[np.int64], base: Floats) -> bool:
    """Whether a step is a hundred times the baseline, no step before was large (or none in the second half of
    them, in which the loss was lowest), and the learning rate had not risen, so that neither is the cause."""
    if not len(at) or not case.evidence.total_norm[at[0]] > TIMES_ALONE * base[at[0]]:
        return False
    e, i = case.evidence, int(at[0])
    losses = e.loss[:i][np.isfinite(e.loss[:i])]
    falls = len(losses) >= FEW_STEPS and trend_of(losses).fell and trend_of(losses).kept
    moved = case.movement[
        (e.update_steps < e.steps[i]) & (e.update_steps >= (e.steps[i // 2] if falls else 0))
    ]
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
