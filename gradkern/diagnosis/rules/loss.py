"""Rules for a loss that oscillates or does not fall.

A loss that is not monotone is normal (training at the edge of stability), and label noise, GANs,
reinforcement learning and resumed runs all have one that does not fall: "not decreasing" is never an alarm by
itself, and swinging only where the steps are large as well.
"""

from __future__ import annotations

import numpy as np

from gradkern.diagnosis.case import Case, Floats
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.gain import guesses, of_many_classes, of_one_class, possible_classes
from gradkern.diagnosis.rounds import repetition
from gradkern.diagnosis.rules.every_other import differs_at_every_other
from gradkern.diagnosis.rules.one_class import batches_of_one_class
from gradkern.diagnosis.rules.undoing import undoing
from gradkern.diagnosis.trend import comparable_losses

#: The fewest steps for a judgement on the loss.
LEAST_STEPS = 40
#: Correlation of neighbouring deviations. It is close to -1 for a loss that jumps up and down. For noise of n
#: steps it is -1/9, because of the running mean, with a standard error of 1/sqrt(n), `ERRORS` of which must
#: be exceeded.
ALTERNATING, NOISE, ERRORS = -0.4, -1 / 9, 3.5
#: Two kinds of batches in turn, each of which undoes the step of the other, come near to -1 (measured: -0.85;
#: the lowest of a healthy run: -0.57). The loss may fall all the same.
IN_TURN = -0.75
#: Losses whose ratio is above this are of one level. The first two of batches of one class each have 0.66 …
#: 0.81 (measured).
LEVEL = 0.5
#: Batches of one class at a time repeat their losses with the number of classes: the part of the deviations
#: that does (measured for 3 to 12 classes: 0.57 … 0.95), and their spread relative to the loss, which is only
#: required while that falls (a smooth fall seems to repeat a little). At least four rounds are looked at.
REPEATED, SPREAD, ROUNDS = 0.5, 0.1, 4
#: F ratio of what repeats (measured in turn: 17 and more). Of simulated runs of noise 0.3 … 0.5 % of 40 steps
#: pass all limits (2 to 4 classes), 0.03 … 0.1 % of 60 steps, and none of 4,000 of 100 steps.
CHANCE = 10.0
#: The same for all losses of a run, whose spread must be larger. Measured in turn 0.45 … 0.63 and 7.4 … 14
#: where the last losses alone do not tell (4 runs). Of 767 healthy classifiers those that do not learn well
#: have up to 0.26 and 7.4, with a spread of 0.14.
THROUGHOUT, CHANCE_THROUGHOUT, WIDE = 0.4, 7.0, 0.15
#: The same where each batch holds one class (`of_one_class`), for the part and its F ratio. Measured: 0.36 …
#: 0.76 and 3.8 … 120 in turn, and at random (batches of one example) up to 0.04 and 3.9.
REPEATED_ALONE, CHANCE_ALONE = 0.25, 3.5
#: Of what repeats, the part from which a shorter round explains it (expected by chance: below a half).
SHORTER = 0.9
#: Part of the first loss by which that of a healthy run falls at least (labelled suite). A small fall tells
#: little: outputs that only become alike make it.
HARDLY = 0.1
#: Typical change from one step to the next, relative to the fall of the loss.
SWING = 0.25
#: ‖Δw‖ / ‖w‖ of steps from which an oscillation is plausible.
LARGE_STEPS = 0.02


def loss_oscillating(case: Case) -> list[Finding]:
    """Batches have one class each, or the loss jumps up and down, or the steps undo each other."""
    return batches_of_one_class(case) or _jumping(case) or undoing(case)


def _jumping(case: Case) -> list[Finding]:
    """The loss jumps up and down, with large steps."""
    e = case.evidence
    loss = comparable_losses(e)
    if len(loss) < LEAST_STEPS:
        return []
    tail = loss[len(loss) // 3 :]
    if not case.learns_well and _by_classes(case, tail):
        return [_in_turn(case, tail, "The loss repeats with the number of classes")]
    movement = case.movement[np.isfinite(case.movement)]
    if len(movement) and np.median(movement) < LARGE_STEPS / 4 and movement.max() < LARGE_STEPS:
        return []
    if not case.learns_well and differs_at_every_other(case):
        return [_in_turn(case, tail, "The loss goes up and down at every other step")]
    correlation, swing = alternation(tail)
    if correlation <= ALTERNATING and _two_levels(loss):
        return []
    in_turn = correlation <= IN_TURN and not case.learns_well
    level = min(_range(loss), abs(case.trend.end)) if in_turn else _range(loss)
    if correlation > min(ALTERNATING, NOISE - ERRORS / np.sqrt(len(tail))) or swing < SWING * max(
        level, 1e-12
    ):
        return []
    if case.trend.fell and case.trend.end < 0.5 * case.trend.start and not in_turn:
        return []
    if in_turn:
        return [_in_turn(case, tail, "The loss goes up and down at every other step")]
    why = "The loss jumps up and down from step to step: the steps are too large to converge."
    numbers = {"lag_1_correlation": correlation, "swing": swing}
    return [case.finding("loss_oscillating", "warning", why, numbers)]


def _two_levels(loss: Floats) -> bool:
    """Whether the loss alternates between two levels from the first steps on, before these tell: then two
    data sets take turns, not two kinds of one."""
    pairs = np.sort(np.abs(loss[:4]).reshape(2, 2).T)
    low, high = sorted(pairs.mean(axis=1).tolist())
    return bool((pairs[:, 0] >= LEVEL * pairs[:, 1]).all()) and low < LEVEL * high


def _in_turn(case: Case, tail: Floats, what: str) -> Finding:
    """The finding of batches of several kinds in turn."""
    correlation, swing = alternation(tail)
    why = f"{what}, as if batches of several kinds took turns: each of them undoes the steps of the others."
    numbers = {"lag_1_correlation": correlation, "swing": swing, "in_turn": 1.0}
    return case.finding("loss_oscillating", "warning", why, numbers)


def _by_classes(case: Case, tail: Floats) -> bool:
    """Whether the losses of a classifier repeat with the number of classes, and differ much in a round."""
    period = possible_classes(case)  # a round of just so many batches tells that they are classes
    if of_many_classes(case):  # as many data sets in turn as there are classes
        return False
    if period < 2 or len(tail) < ROUNDS * period or not tail[-1]:
        return False
    least, chance = (REPEATED_ALONE, CHANCE_ALONE) if of_one_class(case) else (REPEATED, CHANCE)
    spread = _repeated(tail, period, least, chance)
    if spread and (not case.trend.fell or spread >= SPREAD):
        return True
    return _repeated(comparable_losses(case.evidence), period, THROUGHOUT, CHANCE_THROUGHOUT) >= WIDE


def _repeated(loss: Floats, period: int, least: float, chance: float) -> float:
    """The spread of what repeats, over the last losses; 0 if it is too little, or a shorter round explains
    it: two aims in turn repeat every tenth step, too."""
    share, spread = repetition(loss, period)
    if share < least or _ratio(share, len(loss) - period + 1, period) < chance:
        return 0.0
    if any(repetition(loss, d)[0] > SHORTER * share for d in range(2, period) if period % d == 0):
        return 0.0
    return spread / max(abs(float(np.median(loss[-2 * period :]))), 1e-12)


def _ratio(share: float, count: int, period: int) -> float:
    """The F ratio of the analysis of variance that a corrected share of the deviations stands for."""
    left = (1 - share) * (count - period) / (count - 1)
    return (1 - left) / max(left, 1e-12) * (count - period) / (period - 1)


def alternation(loss: Floats) -> tuple[float, float]:
    """(correlation of neighbouring deviations from the running mean, median change of a step)."""
    kernel = np.ones(9) / 9
    deviation = loss[4:-4] - np.convolve(loss, kernel, mode="valid")
    spread = float(np.square(deviation).sum())
    if spread == 0 or not np.isfinite(spread):
        return 0.0, 0.0
    correlation = float((deviation[1:] * deviation[:-1]).sum() / spread)
    return correlation, float(np.median(np.abs(np.diff(loss))))


def _range(loss: Floats) -> float:
    windows = [float(np.median(w)) for w in np.array_split(loss, 20)]
    return abs(float(np.median(loss[:3])) - min(windows))


def loss_not_decreasing(case: Case) -> list[Finding]:
    """The loss ends about where it started or above, or, of a classifier, at the loss of guessing."""
    trend = case.trend
    hardly = trend.fell and trend.fall < HARDLY
    if trend.count < LEAST_STEPS or (trend.fell and not hardly and not guesses(case)):
        return []
    word = "rose" if trend.rose else "did not fall"
    if trend.fell:
        word = "only fell to that of guessing" if guesses(case) else "hardly fell"
    why = f"The loss {word}: it was {trend.start:.4g} at first and {trend.end:.4g} after {trend.count} steps."
    numbers = {"loss_at_start": trend.start, "loss_at_end": trend.end, "lowest": trend.lowest}
    return [case.finding("loss_not_decreasing", "info", why, numbers)]
