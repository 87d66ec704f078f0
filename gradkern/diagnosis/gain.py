"""Estimates from weights and gradients: gains of layers, the rms of their inputs, the number of classes."""

from __future__ import annotations

import math
import re

import numpy as np

from gradkern.diagnosis.case import Case, Floats
from gradkern.diagnosis.losses import CLASSIFYING, YES_OR_NO
from gradkern.diagnosis.model import RECURRENT, Layer
from gradkern.diagnosis.profile import NORMALIZED_BIAS

#: A classifier that guesses has a loss of ln(classes). Wrong initial outputs have more and fall to it. Of 438
#: healthy runs of classifiers (the fifth and the sixth labelled set) three end between 0.97 and 1.02 of it,
#: which have nothing to learn, and two between 0.95 and 0.97; of 316 faulty ones 105 end in the former.
GUESSING = 0.97
#: The same for a loss of unknown kind, which may be there by chance.
EXACTLY = 0.99
#: First loss over that of guessing of a classifier with ordinary initial outputs. A run with a loss of
#: unknown kind is taken for one if it starts in between, and the norm of the gradient of the output's bias is
#: below BOUND (`is_bounded`).
NEAR_GUESSING, BOUND = (0.9, 1.15), 1.5
#: What the gradient of the last bias has of that of batches of one class, at nine of ten steps and typically.
#: Measured: such batches 0.94 … 1.02, mixed ones of two examples 0.6, of more examples below 0.5.
ALONE = 0.9
#: The same at nine of ten steps below which batches hold several classes.
MIXED = 0.5
#: Names of parameters that multiply their input. The meaning of others with two dimensions (the log variances
#: of a Bayesian layer) is not known.
MULTIPLYING = re.compile(r"(^|[._])(w|kernel)\w*$|weight", re.IGNORECASE)

#: A matrix is masked if less than MASKED of its elements ever had a gradient, although ALIVE of its units and
#: of its inputs had one (measured: a mask that keeps a fifth 0.18 … 0.21, dense matrices 0.9 … 1).
MASKED, ALIVE = 0.5, 0.9


def multiplies(case: Case, layer: Layer) -> bool:
    """Whether a matrix is known to multiply the signal once, so that its gain means something."""
    return not RECURRENT.search(layer.kind) and bool(MULTIPLYING.search(case.evidence.names[layer.weight]))


def classes_of(case: Case) -> int:
    """The number of classes; 0 if the loss is not that of a classifier. One of unknown kind is, if the run
    starts at the loss of guessing."""
    classes = possible_classes(case)
    if not case.model.loss and not (classes and _starts_at_guessing(case, classes)):
        return 0
    return classes


def decides(case: Case) -> bool:
    """Whether the loss is known to compare each output with 0 or 1."""
    return case.model.loss.startswith(YES_OR_NO) and bool(case.model.layers)


def possible_classes(case: Case) -> int:
    """The number of classes; that of the outputs if nothing is known of the loss."""
    last = case.model.layers[-1].shape if case.model.layers else ()
    if not last or last[0] < 2 or (case.model.loss and not case.model.loss.startswith(CLASSIFYING)):
        return 0
    return last[0]


def _starts_at_guessing(case: Case, classes: int) -> bool:
    losses = case.evidence.loss[np.isfinite(case.evidence.loss)]
    first = float(losses[0]) / math.log(classes) if len(losses) else 0.0
    return NEAR_GUESSING[0] <= first <= NEAR_GUESSING[1] and is_bounded(case)


def is_bounded(case: Case) -> bool:
    """Whether the gradient of the output's bias is never larger than that of a mean cross-entropy can be: a
    difference of two distributions, whose norm is at most sqrt(2)."""
    e = case.evidence
    last = case.model.layers[-1] if case.model.layers else None
    if last is None or last.bias is None:
        return last is not None
    norms = e.rms[:, last.bias].astype(np.float64) * math.sqrt(e.numel[last.bias])
    return bool(np.nanmax(np.append(norms, 0.0)) <= BOUND)


def guesses(case: Case) -> bool:
    """Whether the loss ends at that of guessing, in a classifier. One of unknown kind has to end closer."""
    known = bool(case.model.loss) or classes_of(case) > 0
    classes = 2 if decides(case) else possible_classes(case)
    least = GUESSING if known else EXACTLY
    return classes > 1 and least * math.log(classes) <= case.trend.end < math.log(classes) / least


def of_one_class(case: Case) -> bool:
    """Whether the batches of a classifier hold one class each, or one example."""
    parts = _parts_of_one_class(case)
    if not len(parts):
        return False
    return float(np.quantile(parts, 0.1)) >= ALONE and float(np.median(parts)) <= 1 / ALONE


def of_many_classes(case: Case) -> bool:
    """Whether the batches of a classifier are known to hold several classes."""
    parts = _parts_of_one_class(case)
    return bool(case.model.loss) and len(parts) > 0 and float(np.quantile(parts, 0.9)) < MIXED


def _parts_of_one_class(case: Case) -> Floats:
    """The norms of the last bias's gradients over those of batches of one class; none if they are not known.

    The gradient of the last bias is the mean of p - t. If all targets t are one of C classes, its norm is
    about ``(1 - exp(-loss)) sqrt(C / (C - 1))``. Different targets cancel.
    """
    e, classes = case.evidence, possible_classes(case)
    last = case.model.layers[-1] if case.model.layers else None
    if classes < 2 or last is None or last.bias is None or not len(e.rows):
        return np.zeros(0)
    norm = e.rms[:, last.bias].astype(np.float64) * math.sqrt(e.numel[last.bias])
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        parts = norm / (1 - np.exp(-e.loss[e.rows])) / math.sqrt(classes / (classes - 1))
    return parts[np.isfinite(parts)]


def input_rms(case: Case, layer: Layer | None = None, quantile: float = 0.5) -> float:
    """Estimated rms of a layer's input (by default the model's); 1 if there is no bias to estimate it from.

    A bias's gradient is a sum over the batch. Where its terms cancel, as they do once the output's bias fits
    the classes' frequencies, the estimate is too large, never too small: a low `quantile` over steps is safe.
    A bias in front of a normalization has rounding errors for a gradient and tells nothing.
    """
    e = case.evidence
    if layer is None:
        layer = case.model.layers[0] if case.model.layers else None
        rows = e.rms[:16]
    else:
        rows = e.rms
    if layer is None or layer.bias is None:
        return 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = rows[:, layer.weight] / rows[:, layer.bias]
    ratio = ratio[np.isfinite(ratio)]
    if case.model.normalizes:
        ratio = ratio[ratio < 1 / NORMALIZED_BIAS]
    return float(np.quantile(ratio, quantile)) if len(ratio) else 1.0


def gains(case: Case, layer: Layer) -> Floats:
    """[U] ``rms(W) * sqrt(fan_in)`` at the steps with weight norms: the rms of the output for inputs of rms
    1.

    PyTorch's default initialization gives 0.58, Xavier's about 1, He's 1.41.
    """
    e = case.evidence
    if not layer.shape:
        return np.zeros(0)
    norms = e.weight_norm[:, layer.weight].astype(np.float64)
    norms = np.where(np.isfinite(norms), norms, 0.0)
    return norms * np.sqrt(np.prod(layer.shape[1:]) / max(e.numel[layer.weight], 1) * used(case, layer))


def used(case: Case, layer: Layer) -> float:
    """The part of a matrix that is not masked: the elements that ever had a gradient, where all its units and
    all its inputs had one; otherwise 1."""
    e, layers = case.evidence, case.model.layers
    at = next((i for i, other in enumerate(layers) if other.weight == layer.weight), 0)
    before = layers[at - 1] if at else None
    if before is None or before.bias is None or layer.bias is None or len(layer.shape) != 2:
        return 1.0
    if e.numel[before.bias] != layer.shape[1] or not min(e.ever_nonzero[[layer.bias, before.bias]]) >= ALIVE:
        return 1.0
    share = float(e.ever_nonzero[layer.weight])
    return share if 0 < share < MASKED else 1.0


def first_gain(case: Case, layer: Layer) -> float:
    """The gain at the first step with weight norms; 0 if that is not near the start."""
    e = case.evidence
    early = len(e.update_steps) and e.update_steps[0] <= e.steps[0] + 20
    found = gains(case, layer)
    return float(found[0]) if early and len(found) else 0.0


def first_offset(case: Case, layer: Layer) -> float:
    """rms of a layer's bias before the first steps, in standard deviations of ``W h`` for inputs of rms 1; 0
    if it is not known."""
    e, gain = case.evidence, first_gain(case, layer)
    if layer.bias is None or not gain:
        return 0.0
    norm = float(np.nan_to_num(e.weight_norm[0, layer.bias]))
    return norm / float(np.sqrt(e.numel[layer.bias])) / gain
