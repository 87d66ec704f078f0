"""The rule for a loss that is climbed without a norm that grows a hundredfold.

The gradient of a cross-entropy is bounded, and adaptive steps are of one size, so that a loss of the wrong
sign rises steadily. Losses of games and of reinforcement learning may rise as well, so that one that is not
known to be a classifier's has to rise much further. May be wrong for a generator whose critic wins by that.
"""

from __future__ import annotations

import math

from gradkern.diagnosis.case import FEW_STEPS, Case
from gradkern.diagnosis.climb import climbs
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.gain import classes_of

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
