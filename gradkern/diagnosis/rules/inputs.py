"""Rules for inputs and for targets that are far larger than initializations assume.

May be wrong for a model that divides its input by a constant first. Nothing is reported for models with
normalization, which undoes the scale, or without a bias in the first layer. Nor for linear models and those
of sigmoids or tanh alone: the gradient of their biases may cancel over a balanced batch, so that the estimate
is too large, and large inputs are found as saturation. Targets are judged for mean squared and absolute
errors of models whose outputs have a bias.
"""

from __future__ import annotations

import math

import numpy as np

from gradkern.diagnosis.case import FEW_STEPS, Case
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.gain import (
    classes_of,
    decides,
    first_gain,
    input_rms,
    is_bounded,
    multiplies,
    possible_classes,
)
from gradkern.diagnosis.losses import LARGE_LOSS
from gradkern.diagnosis.model import Layer
from gradkern.diagnosis.profile import NORMALIZED_BIAS
from gradkern.diagnosis.rules.amplification import GAIN, large_gain, raised_input
from gradkern.diagnosis.trend import WELL

#: Least estimate of the inputs' rms over the first steps, whose error is upwards. Measured: healthy runs
#: 0.1 … 2.2 (872 runs), raw pixels 180 … 270, images with -999 for a fiftieth of the values 20 … 60.
LARGE = 10.0
#: The same for the median over the steps: healthy up to 5.5 (733 runs).
LARGE_OFTEN, INPUT_STEPS = 30.0, 16
#: Inputs keep their size. If the median of the estimates over the run is below this part of the first ones,
#: the gradients of the biases had cancelled, as those of a critic, whose loss is a difference of two means.
#: Measured: two such critics 14 … 21 at first, and a median of 1.5 … 1.8.
LASTS = 1 / 3
#: Least estimate of the first errors for targets that are large. The first loss has to be LARGE_LOSS: a sum
#: over many outputs makes a loss large, and a bias that is normalized away makes the estimate large. Measured
#: on 180 healthy regressions: at most 14 if the loss is above 1 (it is below 120 in all of them), targets of
#: a few hundred 850 … 2,900.
LARGE_ERROR = 30.0
#: The same for the inputs of the first and of the last layer, the smaller one: healthy runs of all kinds up
#: to 2.7 (1,146 runs).
LARGE_BOTH = 6.0
#: First loss over that of guessing (healthy runs: up to 4.4).
RAISED = 10.0
#: ``‖g‖ ‖w‖`` over the loss, which is 2 |f| / |y| for outputs f that are small beside the targets y. Measured
#: for targets of hundreds: 0.008 … 0.13 (3 runs).
SLOPE = 0.3
FIRST_STEPS = 5


def large_inputs(case: Case) -> list[Finding]:
    """The first layer multiplies large inputs: its gradient is as many times too large, and so are the first
    outputs. Adaptive steps hide it in the norm, but not in what is learned."""
    model = case.model
    if len(model.layers) < 2 or len(case.evidence.steps) < FEW_STEPS:
        return []
    size, layer = _largest_input(case)
    shows = not model.normalizes and (model.gates or model.leaks) and size >= LARGE
    if not shows and not _reaches_the_outputs(case, size):
        return []
    name = case.evidence.names[layer.weight]
    why = (
        f"The inputs of {name} have an rms of about {size:.2g}, while initializations assume 1: its gradient "
        "is as many times too large, and so are the first outputs."
    )
    norm = case.evidence.total_norm[case.finite]
    numbers = {"input_rms": size, "norm_at_start": float(norm[0]) if len(norm) else np.nan}
    losses = case.evidence.loss[np.isfinite(case.evidence.loss)]
    better = case.trend.fell and case.trend.end < losses[0]  # the first steps may raise it by far
    severity = "info" if _overcome(case, size) else "warning" if better else "severe"
    return [case.finding("exploding_gradient", severity, why, numbers)]


def _largest_input(case: Case) -> tuple[float, Layer]:
    """The estimated rms of the input of the first layer. If layers were frozen at first, the order of
    execution is not known: the largest one."""
    layers, e = case.model.layers, case.evidence
    late = [x for x in layers[1:] if not e.has_grad[0, x.weight] and e.has_grad[:, x.weight].any()]
    sizes = [_input_at_first(case, layer) for layer in (layers[0], *late)]
    at = int(np.argmax(sizes))
    return sizes[at], (layers[0], *late)[at]


def _reaches_the_outputs(case: Case, size: float) -> bool:
    """Whether the inputs of the first and of the last layer are both large, in a model of any kind, although
    no weights amplify: what is large passes beside bounded activations and normalizations."""
    layers = case.model.layers
    if not LARGE_BOTH <= size < 1 / NORMALIZED_BIAS or _input_at_first(case, layers[-1]) < LARGE_BOTH:
        return False
    return not any(multiplies(case, layer) and first_gain(case, layer) >= GAIN for layer in layers)


def _input_at_first(case: Case, layer: Layer) -> float:
    """The smallest estimate of the first steps with a gradient; the median if that is large, as where only
    most of the batches hold such values. 0 if it is not known."""
    e = case.evidence
    if layer.bias is None:
        return 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = e.rms[:, layer.weight] / e.rms[:, layer.bias]
    ratio = ratio[np.isfinite(ratio)]
    if not len(ratio):
        return 0.0
    first, middle = ratio[:INPUT_STEPS], float(np.median(ratio))
    at_first = float(np.median(first))
    size = at_first if at_first >= LARGE_OFTEN else float(first.min())
    return size if middle >= LASTS * size else middle


def _overcome(case: Case, size: float) -> bool:
    """Whether the run learns well in spite of large inputs. They raise the first loss as many times, or the
    square of that (mean squared errors), so that it falls by most of that when the outputs only shrink. A
    first loss below that of guessing, or of errors of size one, was not raised. One that was raised tenfold
    has thrown the first steps."""
    first = min(abs(float(case.evidence.loss[0])), abs(case.trend.start))
    outputs, classes = case.model.layers[-1].shape, classes_of(case) or 2 * decides(case)
    squared = "mse" in case.model.loss
    guessing = 1.0 if squared else math.log(max(outputs[0] if outputs else 2, 2))
    if classes and first >= RAISED * math.log(classes):
        return False
    raised = max(first / size ** (2 if squared else 1), guessing)
    return case.learns_well and case.trend.end < (1 - WELL) * min(first, raised)


def large_targets(case: Case) -> list[Finding]:
    """The first errors of a regression are large, although its inputs and weights are not. The outputs have
    to grow to their size, which takes adaptive optimizers many steps and throws SGD off its course."""
    e = case.evidence
    size = first_error(case) or _error_without_bias(case)
    if len(e.steps) < FEW_STEPS or size < LARGE_ERROR or not e.loss[0] >= LARGE_LOSS:
        return []
    if input_rms(case, quantile=0.0) >= LARGE or large_gain(case) or raised_input(case):
        return []
    why = (
        f"The first loss is {e.loss[0]:.2g} and the first errors are about {size:.2g}, while initial outputs "
        "are about 1: the targets are far too large for them, and so are the first gradients."
    )
    norm = e.total_norm[case.finite]
    numbers = {"first_error": size, "norm_at_start": float(norm[0]) if len(norm) else np.nan}
    severity = "info" if case.learns_well else "warning" if case.trend.fell else "severe"
    if not case.model.loss and possible_classes(case):  # it may be a cross-entropy that is a sum over a batch
        severity, why = "info", f"{why} This holds if the loss is a mean of squares or absolute values."
    return [case.finding("exploding_gradient", severity, why, numbers)]


def _error_without_bias(case: Case) -> float:
    """The error at the first step, from a loss that is known and is assumed to be a mean, if the outputs have
    no bias. The outputs have to be small beside the targets: weights that double would change the loss by a
    part of itself. 0 if it is not known, or if the run learns well, as with a sum of small errors."""
    e, loss, layers = case.evidence, case.model.loss, case.model.layers
    size = case.weight_size[np.isfinite(case.weight_size)]
    known = loss.startswith("mse") and (not layers or layers[-1].bias is None)
    if not known or not len(size) or not e.loss[0] > 0 or case.learns_well:
        return 0.0
    return float(np.sqrt(e.loss[0])) if e.total_norm[0] * size[0] <= SLOPE * e.loss[0] else 0.0


def first_error(case: Case) -> float:
    """The error at the first steps, estimated from a loss ``c e²`` and the gradient ``2 c e`` of the output's
    bias; 0 for other losses, or without this bias. Too large where the errors of a batch cancel. A loss of
    unknown kind is no mean cross-entropy, if the gradient is larger than that of one can be."""
    e = case.evidence
    loss = case.model.loss
    last = case.model.layers[-1] if case.model.layers else None
    fits = "mse" in loss or "l1" in loss if loss else not is_bounded(case)
    if last is None or last.bias is None or not fits:
        return 0.0
    bias = e.rms[:FIRST_STEPS, last.bias] * e.numel[last.bias]
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = 2 * e.loss[e.rows[: len(bias)]] / bias
    return float(np.min(errors[np.isfinite(errors)], initial=np.inf)) if np.isfinite(errors).any() else 0.0
