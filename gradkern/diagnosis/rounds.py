"""How much of a loss repeats from round to round of a number of steps."""

from __future__ import annotations

import numpy as np

from gradkern.diagnosis.case import Floats

#: The longest round that is looked for, and how many rounds there have to be.
LONGEST, ROUNDS = 40, 4


def repetition(loss: Floats, period: int) -> tuple[float, float]:
    """(part of the deviations from the mean over a period that repeats, corrected for their number; standard
    deviation of what repeats)."""
    mean = np.convolve(loss, np.ones(period) / period, mode="valid")
    deviation = loss[(period - 1) // 2 :][: len(mean)] - mean
    phase = np.arange(len(deviation)) % period
    each = np.bincount(phase, weights=deviation) / np.bincount(phase)
    total = float(np.square(deviation).sum())
    if total == 0 or len(deviation) <= period:
        return 0.0, 0.0
    left = (1 - float(np.square(each[phase]).sum()) / total) * (len(deviation) - 1)
    return 1 - left / (len(deviation) - period), float(each.std())


def largest_repetition(loss: Floats) -> float:
    """The largest part of the deviations that repeats with an even number of steps, from four on."""
    periods = range(4, min(LONGEST, len(loss) // ROUNDS) + 1, 2)
    return max((repetition(loss, period)[0] for period in periods), default=0.0)
