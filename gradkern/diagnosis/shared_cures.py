"""Remedies that several kinds of findings share, chosen by what the run says."""

from __future__ import annotations

import numpy as np

from gradkern.diagnosis import amounts, cures, optimizer, start_cures, step_cures
from gradkern.diagnosis.case import FEW_STEPS, Case
from gradkern.diagnosis.finding import Remedy
from gradkern.diagnosis.gain import first_gain, input_rms
from gradkern.diagnosis.losses import LARGE_LOSS

#: Estimated rms of the input from which scaling it is the first remedy.
LARGE_INPUT = 10.0
#: Gain below which ReLU layers lose the signal over depth.
SMALL_GAIN = 0.9
#: Momentum above that of common settings (0.9, and 0.95 of large models).
HIGH_MOMENTUM = 0.98


def input_is_large(case: Case) -> bool:
    """Whether the input of the first layer is large, estimated from its gradients."""
    return input_rms(case) >= LARGE_INPUT


def targets_are_large(case: Case) -> bool:
    e = case.evidence
    loss = case.model.loss
    first = e.loss[np.isfinite(e.loss)][:1]
    regression = "mse" in loss or "l1" in loss or not loss
    return bool(len(first)) and regression and float(first[0]) >= LARGE_LOSS and input_rms(case) < LARGE_INPUT


def initialization(case: Case) -> list[Remedy]:
    """The initialization that fits the activations."""
    model = case.model
    return [start_cures.xavier_init() if model.squashes and not model.gates else start_cures.he_init()]


def initializations(case: Case) -> list[Remedy]:
    """The initialization that fits, and the other one, which also keeps the scale of the signal. Of 22 runs
    with weights that were too large the first cured 19 and the other one 21, normalization 7: it leaves the
    steps small relative to the weights."""
    return [*initialization(case), start_cures.he_init(), start_cures.xavier_init()]


def scaling(case: Case, kinds: set[str]) -> list[Remedy]:
    inputs = [cures.scale_inputs(case)] if input_is_large(case) else []
    weights = "poor_initialization" in kinds  # which explains a large loss
    return inputs + ([cures.scale_targets(case)] if targets_are_large(case) and not weights else [])


def starts_small(case: Case) -> bool:
    """Whether weights before ReLU or similar activations have a gain that shrinks the signal (He's is 1.41,
    PyTorch's 0.58)."""
    if not (case.model.gates or case.model.leaks) or case.model.normalizes:
        return False
    values = [first_gain(case, layer) for layer in case.model.layers[:-1]]
    return bool(values) and 0 < float(np.median(values)) < SMALL_GAIN


def decay(case: Case, kinds: set[str]) -> list[Remedy]:
    """Weight decay, if weights grow by themselves, or although no step is large."""
    grow = "weight_growth" in kinds and not kinds & {"update_too_large", "summed", "uphill"}
    return [cures.weight_decay(case)] if grow or "by_itself" in kinds else []


def zero(kinds: set[str]) -> list[Remedy]:
    return [cures.zero_grad()] if "summed" in kinds else []


def sign(case: Case, kinds: set[str]) -> list[Remedy]:
    if "negated" in kinds:
        return [cures.remove_minus()]
    if "endless" in kinds:
        return [cures.check_part(case)]
    return [cures.check_sign()] if "uphill" in kinds else []


def schedule(case: Case) -> list[Remedy]:
    """The schedule, if the learning rate grows without end; momentum, if it is unusually high."""
    high = optimizer.momentum(case) > HIGH_MOMENTUM
    rising = [step_cures.check_schedule(case)] if amounts.rate_grows(case) else []
    return rising + ([step_cures.less_momentum(case)] if high else [])


def skip(case: Case) -> list[Remedy]:
    """Skip steps with inf and NaN, unless the run already does."""
    bad = ~np.isfinite(case.evidence.total_norm)
    return [] if bad.any() and case.evidence.skipped[bad].all() else [cures.skip_nonfinite()]


def scale_stands(case: Case) -> bool:
    """Whether gradients overflow from the start at a loss scale that is never lowered."""
    scale, bad = case.evidence.loss_scale, ~np.isfinite(case.evidence.total_norm)
    known = np.isfinite(scale)
    return bool(known.any() and np.ptp(scale[known]) == 0 and bad[:FEW_STEPS].all())
