"""Rules for thresholds that always clip, or never.

Normalized gradient descent (a small max_norm with a matching learning rate) always clips on purpose.
Therefore always clipping is an alarm only if the loss does not fall.
"""

from __future__ import annotations

import numpy as np

from gradkern._util.text import percent
from gradkern.diagnosis.case import Case
from gradkern.diagnosis.distance import BEYOND, reach
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.optimizer import ELEMENTWISE, classes, is_adaptive

#: The fewest steps for a rate.
LEAST_STEPS = 20
#: The least fraction of steps that clip.
ALWAYS = 0.95
#: The largest typical coefficient of an alarm.
STRONGLY = 0.1
#: ‖Δw‖ / ‖w‖ of steps that clipping makes too small: healthy runs have a median above 2e-5. Without clipping
#: they would be at least ten times as large (`STRONGLY`). And the fall of the loss, as a part of its start,
#: below which it hardly falls.
SMALL, HARDLY = 2e-5, 0.2
#: rms of a clipped gradient over Adam's epsilon: at 1.6 steps were a third as large (measured); at 3 they are
#: three quarters.
EPSILONS = 2.0
#: The largest norm as a fraction of the threshold.
NEVER = 0.2


def always_clipping(case: Case) -> list[Finding]:
    """Nearly every step is clipped to a small part of its gradient."""
    e = case.evidence
    coef = e.clip_coef[np.isfinite(e.clip_coef)]
    if len(coef) < LEAST_STEPS:
        return []
    rate, typical = float((coef < 1).mean()), float(np.median(coef))
    if rate < ALWAYS:
        return []
    strong = typical <= STRONGLY
    slows = _holds_back(case) or (_below_epsilon(case) and not case.learns_well)
    severity = "warning" if strong and (not case.trend.fell or slows) else "info"
    why = (
        f"{percent(rate)} of the steps were clipped, typically to {typical:.2g} of the gradient: max_norm "
        "determines the step size, not the gradient."
    )
    numbers = {
        "clip_rate": rate,
        "median_factor": typical,
        "median_norm": float(np.median(e.total_norm[case.finite])),
    }
    return [case.finding("always_clipping", severity, why, numbers)]


def _holds_back(case: Case) -> bool:
    """Whether steps of an optimizer that follows the size of the gradient are too small, and the loss hardly
    falls, or by far more than they can lower it, which is noise. Not while the learning rate still rises."""
    movement, rates = case.movement[np.isfinite(case.movement)], case.evidence.lr
    small = len(movement) > 1 and float(np.median(movement)) <= SMALL
    if rates[-1] > rates[len(rates) // 2]:
        return False
    if not small or not classes(case) or is_adaptive(case):
        return False
    return case.trend.fall < HARDLY or case.trend.start - case.trend.end > BEYOND * reach(case)


def _below_epsilon(case: Case) -> bool:
    """Whether the elements of a clipped gradient are as small as what Adam adds to its denominator, so that
    its steps shrink as well."""
    e = case.evidence
    groups = [g for g in e.facts.get("optimizers") or [] if ELEMENTWISE.search(str(g.get("class", "")))]
    epsilon = max((float(group.get("eps") or 0) for group in groups), default=0.0)
    limit = e.threshold[np.isfinite(e.threshold)]
    return len(limit) > 0 and float(np.median(limit)) <= EPSILONS * epsilon * np.sqrt(e.numel.sum())


def never_clipping(case: Case) -> list[Finding]:
    """The threshold is far above every norm, so that it does not protect."""
    e = case.evidence
    threshold = e.threshold[np.isfinite(e.threshold)]
    norm = e.total_norm[case.finite]
    if len(threshold) < LEAST_STEPS or not len(norm) or (e.clip_coef < 1).any():
        return []
    limit, largest = float(np.median(threshold)), float(norm.max())
    if largest > NEVER * limit:
        return []
    why = f"max_norm is {limit:.3g} and the largest norm is {largest:.3g}, so that no step was ever clipped."
    return [case.finding("never_clipping", "info", why, {"max_norm": limit, "largest_norm": largest})]
