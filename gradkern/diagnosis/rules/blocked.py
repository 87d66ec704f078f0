"""Rule for gradients that are exactly zero in every step although no unit is dead: those before an operation
without a slope (rounding, argmax, a comparison), and those of weights whose inputs are all zero.

May be wrong for a table or an input that is switched off on purpose for the whole run.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradkern.diagnosis.case import Case
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.gain import first_gain, first_offset
from gradkern.diagnosis.model import LOOKUP, Layer

#: Steps from which a gradient that is always zero is not due to chance.
LEAST_STEPS = 20
#: Operations of the graph whose slope is zero everywhere. A straight-through estimator keeps them out of it.
STEPS = {"round", "floor", "ceil", "trunc", "sign", "sgn"}
#: The smallest normal float16.
TINY = 2.0**-14
#: Standard deviation of the argument, or its offset in standard deviations, from which a sigmoid or tanh can
#: be so saturated that its slope rounds to zero.
STUCK = 3.0


def unfed(case: Case) -> list[Finding]:
    """Every layer without a gradient but for the bias of the outputs, although all biases are zero and no
    matrix is: units that add up something would not all be inactive, so that the input is zero."""
    e, layers = case.evidence, case.model.layers
    if len(e.rows) < LEAST_STEPS or len(layers) < 2 or not len(e.weight_norm) or _unused_weights(case).any():
        return []
    columns = [c for x in layers for c in (x.weight, x.bias) if c is not None and c != layers[-1].bias]
    zero = (e.has_grad[:, columns] & (e.rms[:, columns] == 0)).all()
    biases = [x.bias for x in layers if x.bias is not None]
    if (
        not zero
        or len(biases) < 2
        or biases[-1] != layers[-1].bias
        or (e.weight_norm[:, biases[:-1]] != 0).any()
    ):
        return []
    return [_finding(case, columns, "nothing reaches it. Is its input zero in every step?")]


def behind_frozen(case: Case) -> list[Finding]:
    """Every layer that learns is without a gradient but for the bias of the outputs, and its biases are zero:
    what the frozen layers before them pass on is zero for all inputs."""
    e, model = case.evidence, case.model
    frozen = [x for x in model.layers if not model.trainable(x.weight)]
    learning = [x for x in model.layers if model.trainable(x.weight)]
    if len(e.rows) < LEAST_STEPS or not model.gates or not frozen or not learning or not len(e.weight_norm):
        return []
    last = learning[-1].bias
    columns = [c for x in learning for c in (x.weight, x.bias) if c is not None and c != last]
    biases = [x.bias for x in learning[:-1] if x.bias is not None]
    if last is None or not np.nan_to_num(e.rms[:, last]).any() or (e.weight_norm[:, biases] != 0).any():
        return []
    if not (e.has_grad[:, columns] & (e.rms[:, columns] == 0)).all() or _unused_weights(case).any():
        return []
    shifted = [x for x in frozen if first_offset(case, x) >= STUCK]
    shifted = shifted or [x for x in frozen if x.bias is not None and e.weight_norm[0, x.bias] != 0]
    why = (
        f"No layer behind the frozen ones has a gradient in any of {len(e.steps)} steps, but the last bias "
        "has: what they pass on is zero for all inputs, so that units of a frozen layer are all inactive."
    )
    numbers = {"dead_share": 1.0, "layers_cut_off": len(learning)}
    return [case.finding("dead_units", "severe", why, numbers, layers=case.of_layers(shifted or frozen))]


def blocked(case: Case) -> list[Finding]:
    """Lookup tables, or the matrix of the inputs, with a gradient of zero in every step."""
    e = case.evidence
    zero = (e.has_grad & (e.rms == 0)).all(axis=0)
    if len(e.rows) < LEAST_STEPS or not zero.any() or not np.isfinite(e.total_norm).all():
        return []
    if not np.nan_to_num(e.rms).any() or (len(e.weight_norm) and _unused_weights(case).any()):
        return []
    tables = [c for c in np.flatnonzero(zero).tolist() if LOOKUP.search(case.model.kind(c))]
    if tables:
        return [_finding(case, tables, "an operation without a slope (rounding, argmax) cuts it off.")]
    first = case.model.layers[0] if case.model.layers else None
    if first is None or first.bias is None or not zero[first.weight] or zero[first.bias]:
        return []
    return [_finding(case, [first.weight], "its input is zero in every step, while its bias has a gradient.")]


def _unused_weights(case: Case) -> NDArray[np.bool_]:
    """Matrices of zeros, which let no gradient through."""
    return np.asarray((case.evidence.weight_norm[:, case.model.matrices] == 0).all(axis=0))


def _finding(case: Case, columns: list[int], reason: str) -> Finding:
    names, numel = case.names(columns), case.evidence.numel
    why = f"The gradient of {names[0]} is exactly zero in all of {len(case.evidence.steps)} steps: {reason}"
    numbers = {"parameters": len(names), "share_of_elements": float(numel[columns].sum() / numel.sum())}
    return case.finding("no_gradient", "warning", why, numbers, layers=names)


def kind_of_silence(case: Case, layer: Layer, from_the_start: bool) -> tuple[str, str]:
    """(kind, reason) of a layer without any gradient. Sigmoids and tanhs do not die: they are at the ends of
    their range, if weights or a bias can have put them there, or something behind them has no slope. An
    operation without one that was seen in the graph explains a layer that never had a gradient."""
    model = case.model
    steps = STEPS - ({"sign", "sgn"} if "abs" in model.words else set())  # a root of either sign has a slope
    if from_the_start and model.words & steps:
        return "no_gradient", f"an operation without a slope ({min(model.words & steps)}) cuts it off"
    last = model.layers[-1] if model.layers else None
    if layer == last and layer.bias is not None and _is_tiny(case):
        return (
            "no_gradient",
            "the loss is so small that its gradients may be below what float16 can hold",
        )
    stuck = not from_the_start or max(first_offset(case, layer), first_gain(case, layer)) >= STUCK
    smooth = model.leaks and not model.gates and not model.squashes
    if smooth and not stuck:  # SiLU and GELU are flat only far below zero
        return "no_gradient", "an operation without a slope (rounding, argmax) cuts it off"
    if not model.squashes or model.gates or model.leaks:
        return "dead_units", "none of its units is active for any input"
    if stuck:
        return "saturation", "its units are at the ends of their range, where the slope rounds to zero"
    return "no_gradient", "an operation without a slope (rounding, argmax) cuts it off"


def _is_tiny(case: Case) -> bool:
    """Whether the loss is below the smallest normal float16, and not zero."""
    losses = np.abs(case.evidence.loss[np.isfinite(case.evidence.loss)])
    return bool(len(losses)) and 0 < float(np.median(losses)) < TINY
