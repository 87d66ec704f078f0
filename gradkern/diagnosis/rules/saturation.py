"""Sigmoid and tanh units driven so far that their derivative is nearly zero.

The scale of a unit's argument is estimated as ``rms(W) * sqrt(fan_in) * rms(h)``; rms(h) comes from the gradients
(`profile`) and is at most 1 behind a sigmoid or tanh. Wrong where a module between the layers rescales the signal
(then there is a normalization, and nothing is said), and for activations that cannot be told.
"""

from __future__ import annotations

import numpy as np

from gradkern.diagnosis.case import FEW_STEPS, Case
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.model import LEAKY, GATING, Layer

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
    arguments = {i: _argument(case, layer, first=i == 0) for i, layer in enumerate(layers)}
    sick = {i: value for i, value in arguments.items() if value >= limit}
    if not sick:
        return []
    worst = max(sick.values())
    names = case.of_layers([layers[i] for i in sick])
    why = (
        f"The argument of the {'tanh' if limit == TANH_ARGUMENT else 'sigmoid'} behind {names[0]} has a standard "
        f"deviation of about {worst:.0f}: most units are at the ends of its range, where it has no slope."
    )
    numbers = {"argument_std": worst, "layers": len(sick), "input_rms": _input_rms(case, layers[0])}
    severity = "warning" if case.trend.fell else "severe"
    return [case.finding("saturation", severity, why, numbers, layers=names)]


def _argument(case: Case, layer: Layer, first: bool) -> float:
    e = case.evidence
    if not len(e.weight_norm) or not layer.shape:
        return 0.0
    norms = e.weight_norm[:, layer.weight]
    norms = norms[np.isfinite(norms)]
    if not len(norms):
        return 0.0
    fan_in = int(np.prod(layer.shape[1:]))
    rms = float(np.median(norms)) / np.sqrt(max(e.numel[layer.weight], 1))
    signal = _input_rms(case, layer)
    return float(rms * np.sqrt(fan_in) * (signal if first else min(signal, 1.0)))


def _input_rms(case: Case, layer: Layer) -> float:
    """Estimated rms of a layer's input; 1 where it has no bias to tell by."""
    e = case.evidence
    if layer.bias is None:
        return 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = e.rms[:, layer.weight] / e.rms[:, layer.bias]
    ratio = ratio[np.isfinite(ratio)]
    return float(np.median(ratio)) if len(ratio) else 1.0
