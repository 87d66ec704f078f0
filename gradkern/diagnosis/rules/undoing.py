"""The rule for steps each of which undoes a part of the one before, although they are small.

May be wrong for a run whose steps are too large for its loss and therefore go to and fro. Nothing is reported
for a run that is resumed near a minimum, where good steps do so as well.
"""

from __future__ import annotations

import numpy as np

from gradkern.diagnosis.case import Case
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.gain import classes_of
from gradkern.diagnosis.travel import travel
from gradkern.diagnosis.trend import comparable_losses, trend_of

#: The fewest losses, and steps whose lengths are known.
LEAST_STEPS, LOOKS = 40, 3
#: Geometric mean of `travel` from which steps undo each other. Measured where the loss does not fall: with
#: targets turned around at every other step 0.2 … 0.75 (12 runs; 6 others, whose batches differ more, up to
#: 1.2); in games and reinforcement learning 2 and more. With labels or inputs that say nothing it is 0.5 …
#: 1.5: their targets contradict each other as well.
UNDONE = 0.8
#: ‖g‖ ‖w‖ over the loss: how many times its own size a loss can change by if the weights change by theirs.
#: Near a minimum it is large, and good steps undo each other. Its product with `travel`, measured: with
#: targets turned around 0.1 … 12, in resumed runs 26 … 60.
NEAR_MINIMUM = 20.0
#: Part of the losses, from which on a regression must not fall. It starts above what it costs to say nothing,
#: and comes down to that in a few steps.
FIRST = 1 / 5


def undoing(case: Case) -> list[Finding]:
    """The loss does not fall, or no longer, and the steps go less far than those of unrelated gradients."""
    e, trend = case.evidence, case.trend
    if trend.count < LEAST_STEPS or not _is_level(case) or not np.isfinite(e.total_norm).all():
        return []
    size = case.weight_size[np.isfinite(case.weight_size)]
    if not len(size):
        return []
    found = travel(case)
    if len(found) < LOOKS or not (found > 0).all():
        return []
    part = float(np.exp(np.log(found).mean()))
    near = part * float(np.median(e.total_norm)) * size[0]
    if part > UNDONE or not abs(trend.end) * NEAR_MINIMUM > near:
        return []
    later = " any more" if trend.fell else ""
    why = (
        f"The loss does not fall{later}: it was {trend.start:.4g} at first and is {trend.end:.4g}. Steps go "
        f"only {np.sqrt(part):.2g} times as far as those of unrelated gradients: each undoes a part of the "
        "one before, as if targets contradicted each other from batch to batch."
    )
    return [case.finding("loss_oscillating", "warning", why, {"travel": np.sqrt(part), "in_turn": 1.0})]


def _is_level(case: Case) -> bool:
    """Whether the loss does not fall, or that of a regression falls only at first. A classifier's may be on a
    plateau, which it leaves."""
    losses = comparable_losses(case.evidence)
    if not case.trend.fell or case.learns_well or classes_of(case):
        return not case.trend.fell
    return not trend_of(losses[int(len(losses) * FIRST) :]).fell
