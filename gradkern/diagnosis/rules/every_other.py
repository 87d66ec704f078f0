"""Whether the steps of a run are of two kinds in turn: its losses and norms differ at every other step.

Two data sets in turn differ as well, but before the first steps tell. Two kinds of one data set, such as
targets that are turned around at every other step, come apart only when the model has learned something.
"""

from __future__ import annotations

import numpy as np

from gradkern.diagnosis.case import Case, Floats
from gradkern.diagnosis.rounds import largest_repetition, repetition
from gradkern.diagnosis.trend import comparable_losses

#: The fewest steps.
LEAST_STEPS = 40
#: Difference of odd and even steps in standard errors: of the losses alone, or of losses and norms. Measured
#: with targets turned around 5 … 69 and 5 … 24 (8 runs); in 1,000 healthy runs up to 7, and both never beyond
#: 5 unless the model learned well.
ALONE, BOTH = 8.0, 5.0
#: Difference of the first four losses over that of later ones, and over the losses, from which it was there
#: from the beginning. Unless it shrinks to a third while the loss falls by less than a fifth: then the
#: first step made it.
FROM_THE_START, CLEAR, SHRUNK, HARDLY = 0.5, 0.02, 3.0, 0.2
#: What repeats with every other step repeats with every fourth or tenth one as well. A batch that is used for
#: four or ten steps (PPO) makes a loss that repeats with these, and only a little with two. The part that
#: repeats with two over that of the longer round that explains most, measured: targets turned around 0.5 … 1,
#: healthy runs 0.1 … 0.32.
OF_LONGER = 0.4


def differs_at_every_other(case: Case) -> bool:
    """Whether losses, and perhaps norms, are different at every other step, but were not at first."""
    e = case.evidence
    if len(e.steps) < LEAST_STEPS or not np.isfinite(e.loss).all() or not np.isfinite(e.total_norm).all():
        return False
    if (np.diff(e.steps) != 1).any() or not (e.total_norm > 0).all():
        return False
    if len(comparable_losses(e)) < len(e.loss):  # parts that are trained in turn have a loss each
        return False
    tail = e.loss[len(e.loss) // 4 :]
    later, of_loss = contrast(tail)
    _, of_norm = contrast(np.log(e.total_norm[len(e.loss) // 4 :]))
    if abs(of_loss) < ALONE and min(abs(of_loss), abs(of_norm)) < BOTH:
        return False
    if repetition(tail, 2)[0] < OF_LONGER * largest_repetition(tail):
        return False
    first = float(e.loss[:4] @ np.array([1.0, -3.0, 3.0, -1.0])) / 8  # without a trend
    signed = first if (len(e.loss) // 4) % 2 == 0 else -first
    least = max(FROM_THE_START * abs(later), CLEAR * float(np.abs(e.loss[:4]).mean()))
    before, after = float(e.loss[:4].mean()), float(np.median((e.loss[-9:-1] + e.loss[-8:]) / 2))
    hardly = before - after < HARDLY * abs(before)  # of both kinds together
    shrinks = abs(first) > SHRUNK * abs(later) and hardly
    return shrinks or bool(signed * np.sign(later) < least)


def contrast(values: Floats) -> tuple[float, float]:
    """(half of the difference between even and odd values, without a trend; the same in standard errors)."""
    apart = (values[1:-1] - (values[:-2] + values[2:]) / 2) / 2
    apart = apart * np.where(np.arange(1, len(values) - 1) % 2 == 0, 1.0, -1.0)
    spread = float(apart.std()) / np.sqrt(len(apart))
    mean = float(apart.mean())
    return mean, mean / spread if spread else np.copysign(np.inf, mean) if mean else 0.0
