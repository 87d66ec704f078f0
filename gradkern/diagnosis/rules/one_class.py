"""The rule for a classifier each of whose batches holds a single class, as if nobody had shuffled the data.

The gradient of the last bias is the mean of p - t over the batch. If all its targets are class c, the largest
element is 1 - mean(p_c). The loss is the mean of -log(p_c), so that 1 - exp(-loss) is an upper bound of that
element by Jensen's inequality, and close to it. Targets of several classes cancel. For a batch of one example
the two are equal.

May be wrong for a stream that has to be learned in the order in which it comes.
"""

from __future__ import annotations

import math

import numpy as np

from gradkern.diagnosis.case import Case, Floats
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.gain import possible_classes
from gradkern.diagnosis.losses import YES_OR_NO

#: The fewest steps.
LEAST_STEPS = 20
#: The largest element of the last bias's gradient over its bound, from which a batch has one class. Measured:
#: 0.9 … 1 at nine of ten steps of 22 runs with such batches; in the same runs with shuffled data below 0.47.
ALONE = 0.9
#: The part of the steps with such batches. At random, two examples are of one class in a part 1 / classes of
#: the steps. With few classes nearly all steps therefore have to come near to it (`NEARLY`), which batches do
#: whose examples are learned to different degrees.
OFTEN, MANY, ALWAYS, NEARLY = 0.7, 4, 0.9, 0.75
#: Batches of one example reach the bound exactly, but for rounding: so much in float32, and a few times the
#: excess over it in other formats. Losses below `TOLD` say too little about that.
EXACT, TIMES, TOLD = 1e-5, 3.0, 0.01
#: The loss may be multiplied by a constant before backward(), so that only the course of the two counts. From
#: step to step the bound then has to change this many times as much as what the gradient has of it. Measured:
#: 3.8 … 6,000 with batches of one class, below 1.3 in healthy runs.
FOLLOWS = 3.0
#: The rest of a loss that is no longer worth a finding, over ln(classes), that of guessing: nearly all data
#: may be of one class.
LEARNED = 0.1


def batches_of_one_class(case: Case) -> list[Finding]:
    """Each batch has one class, though several examples, and the loss is not gone."""
    classes, parts = _classes(case), _parts(case)
    if classes < 2 or len(parts) < LEAST_STEPS or not case.trend.end >= LEARNED * math.log(classes):
        return []
    excess = float(np.quantile(np.maximum(parts - 1, 0.0), 0.9))
    one_example = float(np.quantile(parts, 0.1)) >= 1 - max(EXACT, TIMES * excess)
    alone = float((parts >= ALONE).mean())
    mixed = classes < MANY and float((parts >= NEARLY).mean()) < ALWAYS
    if alone < OFTEN or mixed or one_example or excess > 1 - ALONE:
        return []
    why = (
        "Each batch holds examples of one class only: the gradient of the last bias is as large as that of "
        "targets that are all the same. The steps for one class undo those for the others."
    )
    numbers = {"batches_of_one_class": alone, "in_turn": 1.0}
    return [case.finding("loss_oscillating", "warning", why, numbers)]


def _classes(case: Case) -> int:
    """A loss of unknown kind may be that of a classifier: its gradients tell."""
    return 2 if case.model.loss.startswith(YES_OR_NO) else possible_classes(case)


def _parts(case: Case) -> Floats:
    """The largest elements of the last bias's gradients over those of targets that are all the same; none if
    they do not follow these."""
    e, last = case.evidence, case.model.layers[-1] if case.model.layers else None
    if last is None or last.bias is None or (last.shape[:1] == (1,)) != (possible_classes(case) == 0):
        return np.zeros(0)
    loss, largest = e.loss[e.rows].astype(np.float64), e.max_abs[:, last.bias].astype(np.float64)
    known = np.isfinite(loss) & (loss > TOLD) & np.isfinite(largest) & (largest > 0)
    bound = 1 - np.exp(-loss[known])
    parts = largest[known] / bound
    if len(parts) < LEAST_STEPS:
        return parts
    scale = float(np.quantile(parts, 0.9))
    if ALONE <= scale <= 1 / ALONE:
        return parts
    apart, change = (float(np.median(np.abs(np.diff(np.log(x))))) for x in (parts, bound))
    return parts / scale if change >= FOLLOWS * apart else np.zeros(0)
