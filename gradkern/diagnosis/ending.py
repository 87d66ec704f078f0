"""How the operations of a run's loss end: the sign of the loss, and what is in front of its softmax.

The graph of the loss has them in the order of execution. Without it the numbers tell a negated cross-entropy,
and the last module what is in front of the softmax, if the loss is known, or guessed, to have one.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from gradkern.diagnosis.case import Case
from gradkern.diagnosis.gain import NEAR_GUESSING, is_bounded, possible_classes
from gradkern.diagnosis.losses import NEVER_NEGATED
from gradkern.diagnosis.model import CLAMPING, GATING

#: Operations behind a loss that keep its sign; `mul` does not: policy gradients multiply by an advantage.
KEEPING = {"mean", "sum", "div"}
#: A loss of unknown kind that starts at minus that of guessing is a cross-entropy with the wrong sign if it
#: ends this many times as far below zero. Negative entropies, which start there as well, end at 1 at most.
FAR_BELOW = 1.5
#: How log-probabilities of targets are taken.
TAKING = {"gather", "index", "index_select", "take_along_dim"}


def is_negated(case: Case) -> bool:
    """Whether a run's only loss is one that is never negative, negated; or a mean log-probability."""
    if not case.model.loss:
        return mirrors_guessing(case)
    ending = [o for o in case.model.ending if o not in KEEPING]
    if case.evidence.facts.get("loss_scale") and ending[-1:] == ["mul"]:
        ending = ending[:-1]  # the scale, where the loss of `backward` was seen
    losses = [o for o in ending if "loss" in o or o.endswith("cross_entropy")]
    if len(losses) == 1 and losses[0].startswith(NEVER_NEGATED):
        return ending[-2:] == [losses[0], "neg"]
    return not losses and len(ending) > 1 and ending[-2] == "log_softmax" and ending[-1] in TAKING


def mirrors_guessing(case: Case) -> bool:
    """Whether a loss of unknown kind starts at minus that of guessing, and falls far below it.

    What else starts there is the sum of p ln p over the outputs, which cannot fall below it.
    """
    classes = possible_classes(case)
    losses = case.evidence.loss[np.isfinite(case.evidence.loss)]
    if classes < 2 or not len(losses) or not is_bounded(case):
        return False
    guessing = math.log(classes)
    starts = NEAR_GUESSING[0] <= -float(losses[0]) / guessing <= NEAR_GUESSING[1]
    return starts and case.trend.known and case.trend.end < -FAR_BELOW * guessing


def in_front_of_softmax(case: Case) -> str:
    """The operation directly in front of the last log-softmax: "softmax", "relu" or another."""
    before = [first for first, second in pairwise(case.model.ending) if second == "log_softmax"]
    name = before[-1] if before else ""
    if not case.model.knows_operations and not name:
        name = case.model.last_module
    return "relu" if name in GATING | CLAMPING else name
