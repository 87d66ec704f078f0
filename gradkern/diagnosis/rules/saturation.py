"""The rule for sigmoid and tanh units whose derivative is nearly zero.

The scale of a pre-activation is estimated from ``rms(W) * sqrt(fan_in) * rms(h)`` and the rms of the bias.
rms(h) comes from the gradients (`profile`) and is at most 1 after a sigmoid or tanh. May be wrong for
unknown activations, and if something rescales the signal between the layers. Nothing is reported for models
with normalization.
"""

from __future__ import annotations

import numpy as np

from gradkern.diagnosis.case import FEW_STEPS, Case, Floats
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.gain import first_gain, gains, input_rms, multiplies
from gradkern.diagnosis.model import Layer
from gradkern.diagnosis.rules.outputs import softmax_twice

#: rms of the pre-activation. At a standard deviation of 4, three quarters of tanh's slopes are below 0.02.
#: Xavier's initialization gives 1, trained healthy layers up to 2.4. A sigmoid is half as steep.
TANH_ARGUMENT, SIGMOID_ARGUMENT = 4.0, 8.0
#: rms of the inputs of hidden layers after bounded activations: the largest over the smallest, and the
#: largest. With unbounded activations it grows by the gain from layer to layer.
LEVEL, HIGHEST = 2.5, 2.0
#: rms slope of the first activation relative to its steepest one, at the limits above. For normally
#: distributed arguments of standard deviation s, that of tanh is 0.73 / sqrt(s): 0.36. Measured: healthy tanh
#: 0.5 … 1.1, healthy sigmoid 0.6 … 0.9, saturated 0.03 … 0.13.
SLOPE = 0.4
STEEPEST_TANH, STEEPEST_SIGMOID = 1.0, 0.25
#: Looks at the weights that tell the slope before training changes it. Pixels of 0 … 255 in front of tanh
#: have 0.02 … 0.07 there (4 runs), and up to 0.41 over the run.
FIRST_LOOKS = 3
#: Quantile over the first steps of the estimated rms of the input: the smallest, because the error is
#: upwards.
LOW = 0.0


def saturation(case: Case) -> list[Finding]:
    """Layers whose sigmoid or tanh has arguments that are too large, or outputs behind a second softmax."""
    return softmax_twice(case) or _saturated(case)


def _saturated(case: Case) -> list[Finding]:
    """Layers whose sigmoid or tanh has arguments that are too large."""
    e, model = case.evidence, case.model
    mixed = model.gates or model.leaks
    if mixed or model.normalizes or model.recurs or len(e.steps) < FEW_STEPS:
        return []
    if not (model.squashes if model.knows_activations else _bounded(case)):
        return []
    sigmoid = "sigmoid" in model.words and "tanh" not in model.words
    limit = SIGMOID_ARGUMENT if sigmoid else TANH_ARGUMENT
    layers = model.layers[:-1]
    known = [(i, layer) for i, layer in enumerate(layers) if multiplies(case, layer)]
    courses = {i: _arguments(case, layer, first=i == 0) for i, layer in known}
    sick = {i: c for i, c in courses.items() if len(c) and np.median(c) >= limit}
    steepest = STEEPEST_SIGMOID if sigmoid else STEEPEST_TANH
    by_bias = bool(sick) and _bias_size(case, layers[0])[:1].max(initial=0.0) >= limit
    if set(sick) == {0} and not by_bias and _first_slope(case) > SLOPE * steepest:
        sick = {}
    if not sick:
        return []
    worst = max(float(np.median(course)) for course in sick.values())
    onset = min(int(np.argmax(course >= limit)) for course in sick.values())
    names = case.of_layers([layers[i] for i in sick])
    why = (
        f"The pre-activations of {names[0]} have an rms of about {worst:.0f}: most units are "
        "at the ends of the activation's range, where its slope is nearly zero."
    )
    numbers = {"argument_std": worst, "layers": len(sick), "input_rms": input_rms(case)}
    severity = "warning" if case.trend.fell else "severe"
    first = int(e.update_steps[onset])
    return [case.finding("saturation", severity, why, numbers, layers=names, first=first)]


def _arguments(case: Case, layer: Layer, first: bool) -> Floats:
    """[U] rms of the argument, at the steps with weight norms."""
    signal = input_rms(case, quantile=LOW) if first else min(input_rms(case, layer), 1.0)
    weighted = gains(case, layer) * signal
    return np.hypot(weighted, _bias_size(case, layer)) if len(weighted) else weighted


def _bias_size(case: Case, layer: Layer) -> Floats:
    """[U] rms of a layer's bias, 0 without one."""
    e = case.evidence
    if layer.bias is None:
        return np.zeros(len(e.weight_norm))
    return np.nan_to_num(e.weight_norm[:, layer.bias].astype(np.float64)) / np.sqrt(e.numel[layer.bias])


def _bounded(case: Case) -> bool:
    """Whether unknown activations are bounded: the signal stays level although each layer amplifies it."""
    inner = case.model.layers[1:-1]
    signals = [input_rms(case, layer) for layer in inner if layer.bias is not None]
    gain = [first_gain(case, layer) for layer in inner]
    if len(signals) < 2 or min(gain) < TANH_ARGUMENT:
        return False
    return max(signals) < LEVEL * min(signals) and max(signals) < HIGHEST


def _first_slope(case: Case) -> float:
    """The slope of the first layer's activation, estimated as the ratio of the gradient of its bias to that
    which the second layer passes back: that of the run or of the first looks, whichever is smaller. 0 if it
    is not known. Later on few units may be left that are not saturated, and their weights have grown.

    It shows whether a large input is real. The input is estimated from the gradient of the same bias, a sum
    over the batch whose terms may cancel; those of the second bias then cancel as well.
    """
    e, (first, second) = case.evidence, case.model.layers[:2]
    if first.bias is None or second.bias is None or len(second.shape) < 2 or not len(e.weight_norm):
        return 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = e.rms[:, first.bias] / e.rms[:, second.bias] * np.sqrt(second.shape[1])
        slopes = ratio / e.weight_norm[0, second.weight]
        at = np.flatnonzero(np.isin(e.steps[e.rows], e.update_steps[:FIRST_LOOKS]))
        early = ratio[at] / e.weight_norm[: len(at), second.weight]
    found = [float(np.median(x[np.isfinite(x)])) for x in (slopes, early) if np.isfinite(x).any()]
    return min(found, default=0.0)
