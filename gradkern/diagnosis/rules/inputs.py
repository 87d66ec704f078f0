"""The rule for inputs that are far larger than initializations assume.

May be wrong for a model that divides its input by a constant first. Nothing is reported for models with
normalization, which undoes the scale, or without a bias in the first layer. Nor for linear models and those
of sigmoids or tanh alone: the gradient of their biases may cancel over a balanced batch, so that the estimate
is too large, and large inputs are found as saturation.
"""

from __future__ import annotations

import numpy as np

from gradkern.diagnosis.case import FEW_STEPS, Case
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.gain import input_rms

#: Least estimate of the inputs' rms over the first steps, whose error is upwards. Measured: healthy runs
#: 0.1 … 2.2, raw pixels 180 … 270.
LARGE = 30.0


def large_inputs(case: Case) -> list[Finding]:
    """The first layer multiplies large inputs: its gradient is as many times too large, and so are the first
    outputs. Adaptive steps hide it in the norm, but not in what is learned."""
    model, size = case.model, input_rms(case, quantile=0.0)
    if model.normalizes or not (model.gates or model.leaks) or len(model.layers) < 2:
        return []
    if len(case.evidence.steps) < FEW_STEPS or size < LARGE:
        return []
    name = case.evidence.names[model.layers[0].weight]
    why = (
        f"The inputs of {name} have an rms of about {size:.2g}, while initializations assume 1: its gradient "
        "is as many times too large, and so are the first outputs."
    )
    norm = case.evidence.total_norm[case.finite]
    numbers = {"input_rms": size, "norm_at_start": float(norm[0]) if len(norm) else np.nan}
    losses = case.evidence.loss[np.isfinite(case.evidence.loss)]
    better = case.trend.fell and case.trend.end < losses[0]  # the first steps may raise it by far
    severity = "info" if case.learns_well else "warning" if better else "severe"
    return [case.finding("exploding_gradient", severity, why, numbers)]
