"""Rules for an activation between the outputs of a classifier and its cross-entropy, which expects none.

Both need the graph of the loss. The operation in front of the softmax may belong to another branch of the
model, so that the losses or the gradients have to agree.
"""

from __future__ import annotations

import math

import numpy as np

from gradkern._util.text import percent
from gradkern.diagnosis.case import Case
from gradkern.diagnosis.ending import in_front_of_softmax
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.gain import classes_of

#: Part of what the loss can fall from that of guessing which is left if the outputs are not yet right.
LEFT = 0.1
#: Relative error of a loss in float32, or of a mean of some.
ROUNDING = 1e-3
#: The fewest later looks at which an output without a gradient tells.
LOOKS = 3


def softmax_twice(case: Case) -> list[Finding]:
    """The outputs pass a softmax and then the one of the cross-entropy: all losses lie between those of the
    probabilities 1 and 0, ``ln(1 + (C - 1) / e)`` and ``ln(e + C - 1)``."""
    classes, losses = classes_of(case), case.evidence.loss[np.isfinite(case.evidence.loss)]
    if classes < 2 or not case.trend.known or in_front_of_softmax(case) != "softmax":
        return []
    lowest, highest = math.log(1 + (classes - 1) / math.e), math.log(math.e + classes - 1)
    inside = (losses >= lowest * (1 - ROUNDING)) & (losses <= highest * (1 + ROUNDING))
    if not inside.all() or case.trend.end < lowest + LEFT * (math.log(classes) - lowest):
        return []
    why = (
        "The outputs pass through softmax() and then through cross_entropy(), which has a softmax of its "
        f"own: the loss cannot fall below {lowest:.2f}, and the slope of the first shrinks the gradients."
    )
    numbers = {"lowest_possible_loss": lowest, "loss_at_end": case.trend.end}
    layers = case.of_layers(case.model.layers[-1:])
    return [case.finding("saturation", "warning", why, numbers, layers=layers)]


def gated_outputs(case: Case) -> list[Finding]:
    """The outputs of a classifier pass a ReLU, and some get no gradient from a whole batch. Those of a
    softmax always do."""
    e, last = case.evidence, case.model.layers[-1] if case.model.layers else None
    if last is None or last.bias is None or classes_of(case) < 2 or in_front_of_softmax(case) != "relu":
        return []
    counted = np.flatnonzero((e.zeros[:, last.bias] >= 0) & (e.rms[:, last.bias] > 0))
    counted = counted[len(counted) // 2 :]
    if len(counted) < LOOKS or case.learns_well or not e.zeros[counted, last.bias].min() > 0:
        return []
    share = float(np.median(e.zeros[counted, last.bias]) / e.numel[last.bias])
    why = (
        "The outputs pass through a ReLU in front of cross_entropy(): an output below zero gets no gradient, "
        f"typically {percent(share)} of them in a whole batch, and none can say that a class is unlikely."
    )
    numbers = {"dead_share": share, "outputs_gated": 1.0}
    return [case.finding("dead_units", "warning", why, numbers, layers=case.of_layers([last]))]
