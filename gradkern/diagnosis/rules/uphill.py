"""The rules for a loss that is negated, and for one that is climbed without a norm that grows a hundredfold.

A negated loss is known from its graph: one that is by its kind never below zero is recorded below it.

The gradient of a cross-entropy is bounded, and adaptive steps are of one size, so that a loss of the wrong
sign rises steadily. Losses of games and of reinforcement learning may rise as well, so that one that is not
known to be a classifier's has to rise much further. May be wrong for a generator whose critic wins by that.
"""

from __future__ import annotations

import math

import numpy as np

from gradkern.diagnosis.case import FEW_STEPS, Case
from gradkern.diagnosis.climb import climbs
from gradkern.diagnosis.ending import is_negated
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.gain import classes_of
from gradkern.diagnosis.trend import ERRORS

#: Loss at the end over that at the start, and over ln(classes), the loss of guessing. Measured with the wrong
#: sign and plain SGD: 1.45 after 100 steps; the steps alone have to explain the rise in any case (`climbs`).
WORSE = 1.3
#: The same for other losses over their start (a generator that loses to its critic has 10).
FAR_WORSE = 30.0


def climbed(case: Case) -> list[Finding]:
    """The steps go up the loss, to far more than that of guessing."""
    trend, classes, count = case.trend, classes_of(case), len(case.evidence.steps)
    if count < 2 * FEW_STEPS or trend.count < count or not trend.start > 0:
        return []
    least = WORSE * max(trend.start, math.log(classes)) if classes > 1 else FAR_WORSE * trend.start
    if trend.end < least or not climbs(case, count):
        return []
    why = (
        f"The loss rose from {trend.start:.3g} to {trend.end:.3g}, although the steps are small, as far "
        "as steps up the gradient raise it."
    )
    numbers = {"loss_at_start": trend.start, "loss_at_end": trend.end, "uphill": 1.0}
    return [case.finding("exploding_gradient", "severe", why, numbers)]


def negated(case: Case) -> list[Finding]:
    """The run minimizes a loss that was negated, which therefore falls without end."""
    e, trend = case.evidence, case.trend
    losses = e.loss[np.isfinite(e.loss)]
    if len(e.steps) < 2 * FEW_STEPS or not trend.known or not is_negated(case) or (losses > 0).any():
        return []
    diverged = bool((e.has_loss & ~np.isfinite(e.loss)).any())
    if not diverged and trend.start - trend.end <= ERRORS * trend.error:  # not what is minimized
        return []
    why = (
        f"The loss is {trend.start:.3g} at first and {trend.end:.3g} later. It is the negative of one that "
        "is never below zero, so that it has no lower bound: the steps make the predictions worse."
    )
    numbers = {"loss_at_start": trend.start, "loss_at_end": trend.end, "uphill": 1.0, "negated": 1.0}
    return [case.finding("exploding_gradient", "severe", why, numbers)]
