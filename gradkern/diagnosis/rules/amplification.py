"""Rules for initial weights that are so large that the layers amplify the signal.

The gain of a matrix is told by its norm, and what reaches an inner layer by its gradients (`profile`). May be
wrong where something divides the signal between the layers by a constant, if no layer has a bias.
"""

from __future__ import annotations

import math

import numpy as np

from gradkern.diagnosis.case import Case, Floats
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.gain import first_gain, input_rms, is_bounded, multiplies, possible_classes

#: Typical gain of the matrices (`gain`) before the first step: healthy 0.28 … 1.51, too large from 2.9 on. It
#: counts if the layers together multiply the signal fivefold more than He's gain, sqrt(2), would, or if one
#: of them does so tenfold alone (the largest of a healthy run: 3.6). With normalization healthy layers have
#: at most 0.72 (133 runs).
GAIN, MULTIPLIED, TOGETHER = 2.5, 10.0, 5.0
#: In front of these, a matrix holds frequencies, which may be large (Tancik et al., "Fourier Features Let
#: Networks Learn High Frequency Functions in Low Dimensional Domains", 2020).
PERIODIC = {"sin", "cos"}
#: Estimated rms of the input of an inner layer at the first steps, in itself and relative to the model's
#: input. Healthy: up to 4.3 and 5.2 (585 runs without normalization); weights of torch.rand or a gain of 4
#: and more: 16 … 7,700 (30 runs). Layers that each amplify have at least one `GAIN` behind them.
LEVEL = 10.0
#: First loss over that of guessing. Healthy: up to 4.4, with gains of 1.5 at most.
RAISED_LOSS = 2.0
#: Steps whose gradients tell the first signal.
FIRST_STEPS = 5


def severity_of(case: Case) -> str:
    """The severity of bad first weights: a loss that falls all the same makes it a warning."""
    return "warning" if case.trend.fell else "severe"


def large_gain(case: Case) -> list[Finding]:
    """The weights start so large that the layers together, or one of them alone, amplify the signal.
    Normalization undoes this in all layers but the last."""
    layers = [layer for layer in case.model.layers if multiplies(case, layer)]
    values = [first_gain(case, layer) for layer in layers]
    if not values:
        return []
    typical, largest = float(np.median(values)), max(values)
    together = len(layers) * math.log(max(typical, 1e-9) / math.sqrt(2)) >= math.log(TOGETHER)
    together &= len(layers) > 1 and typical >= GAIN and _is_passed_on(case)
    alone = largest >= MULTIPLIED * math.sqrt(2) and not case.model.words & PERIODIC
    if case.model.normalizes:  # but for the outputs, which nothing divides
        together, alone = together and values[-1] >= GAIN, values[-1] >= MULTIPLIED * math.sqrt(2)
        largest = values[-1] if alone else largest
    if not (together or alone):
        return []
    names = case.names(x.weight for x, value in zip(layers, values) if value >= GAIN)
    who = (
        f"each of {len(layers)} layers"
        if together
        else case.evidence.names[layers[values.index(largest)].weight]
    )
    gain = typical if together else largest
    why = (
        f"Before the first step {who} multiplies its input by about {gain:.1f} (1.4 with He initialization): "
        "the initial weights are too large."
    )
    numbers = {"gain": gain, "layers": len(layers) if together else len(names)}
    return [case.finding("poor_initialization", severity_of(case), why, numbers, layers=names)]


def _is_passed_on(case: Case) -> bool:
    """Whether the signal is amplified where weights are: an inner layer's input is larger by at least `GAIN`.
    It is not where a mask or a factor makes up for the weights. Assumed where it is not known, and where
    activations are bounded. Behind normalization the first loss of a classifier tells it."""
    levels, classes = signals(case), possible_classes(case)
    if (
        case.model.normalizes
        and classes
        and is_bounded(case)
        and case.evidence.loss[0] >= RAISED_LOSS * math.log(classes)
    ):
        return True
    return case.model.squashes or not levels or max(x[:2].min() for x in levels.values()) >= GAIN


def signals(case: Case) -> dict[int, Floats]:
    """Estimated rms of the inputs of all layers but the first at the first steps, by their position, with an
    error upwards."""
    e = case.evidence
    found: dict[int, Floats] = {}
    for at, layer in enumerate(case.model.layers):
        if at and layer.bias is not None and multiplies(case, layer):
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = e.rms[:FIRST_STEPS, layer.weight] / e.rms[:FIRST_STEPS, layer.bias]
            ratio = ratio[np.isfinite(ratio) & (ratio > 0)]
            if len(ratio):
                found[at] = ratio
    return found


def raised_input(case: Case) -> list[Finding]:
    """The input of a layer is far larger than the model's, behind weights that amplify. Weights whose mean is
    not zero (torch.rand) amplify more than their rms tells."""
    levels, layers = {at: float(x.min()) for at, x in signals(case).items()}, case.model.layers
    if case.model.normalizes:  # a branch that is not normalized may reach the outputs
        levels = {at: level for at, level in levels.items() if at == len(layers) - 1}
    if not levels:
        return []
    at, least = max(levels, key=lambda i: levels[i]), MULTIPLIED if case.model.normalizes else GAIN
    level, large = (
        levels[at],
        [x for x in layers[:at] if multiplies(case, x) and first_gain(case, x) >= least],
    )
    if level < LEVEL * max(input_rms(case, quantile=0.0), 1.0) or not large:
        return []
    why = (
        f"At the first steps the input of {case.evidence.names[layers[at].weight]} has an rms of about "
        f"{level:.2g}, far more than the model's: the initial weights before it are too large."
    )
    numbers = {"gain": max(first_gain(case, x) for x in large), "layers": len(large)}
    names = case.names(x.weight for x in large)
    return [case.finding("poor_initialization", severity_of(case), why, numbers, layers=names)]
