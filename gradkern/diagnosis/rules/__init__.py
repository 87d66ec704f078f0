"""The rules, one file per family. A rule is a function from a `Case` to a list of findings."""

from __future__ import annotations

from collections.abc import Callable

from gradkern.diagnosis.case import Case
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.rules.clipping import always_clipping, never_clipping
from gradkern.diagnosis.rules.course import exploding_over_time
from gradkern.diagnosis.rules.depth import exploding_over_depth, vanishing_gradient
from gradkern.diagnosis.rules.initialization import poor_initialization
from gradkern.diagnosis.rules.loss import loss_not_decreasing, loss_oscillating
from gradkern.diagnosis.rules.nonfinite import nonfinite_gradient
from gradkern.diagnosis.rules.over_time import vanishing_over_time
from gradkern.diagnosis.rules.precision import low_precision_underflow
from gradkern.diagnosis.rules.saturation import saturation
from gradkern.diagnosis.rules.silence import dead_units, no_gradient
from gradkern.diagnosis.rules.spikes import gradient_spike
from gradkern.diagnosis.rules.updates import update_too_large, update_too_small
from gradkern.diagnosis.rules.weights import weight_collapse, weight_growth

RULES: tuple[Callable[[Case], list[Finding]], ...] = (
    nonfinite_gradient,
    low_precision_underflow,
    no_gradient,
    dead_units,
    saturation,
    vanishing_gradient,
    vanishing_over_time,
    exploding_over_depth,
    exploding_over_time,
    poor_initialization,
    update_too_large,
    weight_growth,
    weight_collapse,
    update_too_small,
    always_clipping,
    never_clipping,
    gradient_spike,
    loss_oscillating,
    loss_not_decreasing,
)
