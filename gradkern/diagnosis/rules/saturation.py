"""Sigmoid and tanh units driven so far that their derivative is nearly zero.

The scale of a unit's argument is estimated as ``rms(W) * sqrt(fan_in) * rms(h)``; rms(h) comes from the
gradients (`profile`) and is at most 1 behind a sigmoid or tanh. Wrong where a module between the layers
rescales the signal (then there is a normalization, and nothing is said), and for activations that cannot be
told.
"""

from __future__ import annotations

import numpy as np

from gradkern.diagnosis.case import FEW_STEPS, Case, Floats
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.model import GATING, LEAKY, Layer

#: Standard deviation of the argument. At 4 three quarters of tanh's derivatives are below 0.02; Xavier's
#: initialization gives 1, trained healthy layers up to 2.4. A sigmoid is half as steep.
TANH_ARGUMENT, SIGMOID_ARGUMENT = 4.0, 8.0


def saturation(case: Case) -> list[Finding]:
    """Layers in front of a sigmoid or tanh whose argument is too large."""
    e, model = case.evidence, case.model
    mixed = bool(model.words & (GATING | LEAKY))
    if not model.squashes or mixed or model.normalizes or model.recurs or len(e.steps) < FEW_STEPS:
        return []
    limit = TANH_ARGUMENT if "tanh" in model.words else SIGMOID_ARGUMENT
    layers = model.layers[:-1]
    courses = {i: _arguments(case, layer, first=i == 0) for i, layer in enumerate(layers)}
    sick = {i: c for i, c in courses.items() if len(c) and np.median(c) >= limit}
    if not sick:
        return []
    worst = max(float(np.median(course)) for course in sick.values())
    onset = min(int(np.argmax(course >= limit)) for course in sick.values())
    names = case.of_layers([layers[i] for i in sick])
    why = (
        f"The argument of the {'tanh' if limit == TANH_ARGUMENT else 'sigmoid'} behind {names[0]} has a "
        f"standard deviation of about {worst:.0f}: most units are at the ends of its range, where it has no "
        "slope."
    )
    numbers = {"argument_std": worst, "layers": len(sick), "input_rms": _input_rms(case, layers[0])}
    severity = "warning" if case.trend.fell else "severe"
    first = int(e.update_steps[onset])
    return [case.finding("saturation", severity, why, numbers, layers=names, first=first)]


def _arguments(case: Case, layer: Layer, first: bool) -> Floats:
    """[U] standard deviation of the argument at each look."""
    e = case.evidence
    if not layer.shape:
        return np.zeros(0)
    norms = np.nan_to_num(e.weight_norm[:, layer.weight].astype(np.float64), posinf=0.0)
    fan_in = int(np.prod(layer.shape[1:]))
    signal = _input_rms(case, layer)
    return norms * np.sqrt(fan_in / max(e.numel[layer.weight], 1)) * (signal if first else min(signal, 1.0))


def _input_rms(case: Case, layer: Layer) -> float:
    """Estimated rms of a layer's input; 1 where it has no bias to tell by."""
    e = case.evidence
    if layer.bias is None:
        return 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = e.rms[:, layer.weight] / e.rms[:, layer.bias]
    ratio = ratio[np.isfinite(ratio)]
    return float(np.median(ratio)) if len(ratio) else 1.0
