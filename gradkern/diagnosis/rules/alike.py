"""Rules for initial weights that are all equal or all zero, so that the units of a layer are copies.

May be wrong for layers that are meant to start at zero (the second half of LoRA, a gate, a last layer); a
single one of them is not reported.
"""

from __future__ import annotations

import math

import numpy as np

from gradkern.diagnosis.case import Case
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.model import Layer

#: max_abs / rms of a matrix's gradient: 1.000 if all units are equal, otherwise 1.77 or more.
ALIKE = 1.01
LEAST_ELEMENTS = 16
FIRST_STEPS = 5
#: Relative difference of the rms of matrices that hold one number, by rounding. Two random ones of n elements
#: differ by about 1 / sqrt(2 n), which has to be `CLEARLY` more.
ROUNDED, CLEARLY = 1e-5, 30.0
#: Orthogonal matrices of one larger side have equal norms, too. Their gains are these.
ORTHOGONAL = (0.5, 2.0)


def constant_weights(case: Case) -> list[Finding]:
    """All units of a layer start equal, get the same gradient and stay equal."""
    layers = case.model.layers
    alike = [layer for layer in layers if _crest(case, layer.weight) <= ALIKE]
    if alike == layers[-1:] and (len(layers) > 2 or _is_silent(case, layers[-2:-1])):
        alike = []  # the inputs of the last one are alike, not its weights
    shown = [layer.weight for layer in alike]
    if not alike:
        alike = _with_equal_biases(case)
        shown = [layer.bias for layer in alike if layer.bias is not None]
    if not alike:
        return _of_one_number(case)
    names, first = case.of_layers(alike), case.evidence.names[shown[0]]
    why = (
        f"All elements of the gradient of {first} are equal: its layer started as one constant, so that all "
        "units learn the same and stay equal."
    )
    numbers = {"crest": max(_crest(case, column) for column in shown), "layers": len(alike)}
    return [case.finding("poor_initialization", "severe", why, numbers, layers=names)]


def _of_one_number(case: Case) -> list[Finding]:
    """All matrices start with one number, told by their norms.

    The gradients do not show it where what reaches the units cancels, as before a softmax whose outputs are
    alike: they are rounding errors then.
    """
    e, layers = case.evidence, [x for x in case.model.layers if x.shape]
    if len(layers) < 3 or not len(e.update_steps) or e.update_steps[0] != e.steps[0]:
        return []
    count = e.numel[[x.weight for x in layers]].astype(np.float64)
    size = np.nan_to_num(e.weight_norm[0, [x.weight for x in layers]].astype(np.float64)) / np.sqrt(count)
    typical = float(np.median(size))
    same = np.abs(size - typical) <= ROUNDED * typical
    random = 1 / math.sqrt(2 * count.max())
    if not typical or random < CLEARLY * ROUNDED or 2 * same.sum() < len(layers):
        return []
    layers = [x for x, alike in zip(layers, same) if alike]
    if len(layers) < 3 or not _differ(layers, typical):
        return []
    why = (
        f"All elements of {len(layers)} matrices start as {typical:.3g}, or as its opposite, by their "
        "norms: the units of a layer learn the same, but for rounding errors."
    )
    names = case.of_layers(layers)
    numbers = {"crest": 1.0, "layers": len(layers)}
    return [case.finding("poor_initialization", "severe", why, numbers, layers=names)]


def _differ(layers: list[Layer], size: float) -> bool:
    """Whether the shapes of matrices of one rms tell that they are not orthogonal, and that neither their
    rows nor their columns are normalized."""
    sides = [(x.shape[0], math.prod(x.shape[1:])) for x in layers]
    largest = {max(side) for side in sides}
    orthogonal = len(largest) == 1 and ORTHOGONAL[0] <= size * math.sqrt(max(largest)) <= ORTHOGONAL[1]
    return min(len({a for a, _ in sides}), len({b for _, b in sides})) > 1 and not orthogonal


def _with_equal_biases(case: Case) -> list[Layer]:
    """The layers but the last for which the gradient of the bias is one number, if there are two or no other.

    The first matrix of a network has equal rows, whose elements differ as the inputs do, and parameters of
    another kind (the rates of decays) tell the units of some layers apart. One such bias alone may be in
    front of a mean. None of 740 healthy runs has one.
    """
    inner = case.model.layers[:-1]
    equal = [layer for layer in inner if layer.bias is not None and _crest(case, layer.bias) <= ALIKE]
    alone = len(inner) == 1 and not case.model.normalizes
    return equal if len(equal) > 1 or alone else []


def _is_silent(case: Case, layers: list[Layer]) -> bool:
    """Whether layers have a gradient of exactly zero at first: if their units are stuck at 1 and -1, the
    elements of the next layer's gradient have one size."""
    first = case.evidence.rms[:FIRST_STEPS, [layer.weight for layer in layers]]
    return bool(first.size and (first == 0).all())


def _crest(case: Case, column: int) -> float:
    """max_abs / rms of a gradient, the largest of the first steps; inf if it has few elements or is zero."""
    e = case.evidence
    with np.errstate(invalid="ignore", divide="ignore"):
        crest = e.max_abs[:FIRST_STEPS, column] / e.rms[:FIRST_STEPS, column]
    crest = crest[np.isfinite(crest)]
    return float(crest.max()) if len(crest) and e.numel[column] >= LEAST_ELEMENTS else math.inf


def zero_weights(case: Case) -> list[Finding]:
    """Two or more matrices are zero, with a gradient of zero: no signal passes between them."""
    e = case.evidence
    if not len(e.weight_norm) or len(e.rows) < 3:
        return []
    zero = (e.weight_norm == 0).all(axis=0)
    stuck = zero & ((e.rms == 0) & e.has_grad).all(axis=0)
    zero &= ~(np.nan_to_num(e.rms) > 0).any(axis=0)  # frozen ones have no gradient
    layers = [layer for layer in case.model.layers if zero[layer.weight]]
    if len(layers) < 2 or not any(stuck[layer.weight] for layer in layers):
        return []
    why = (
        f"{len(layers)} matrices are zero and have a gradient of exactly zero: no gradient passes through "
        "zero weights, so they stay zero."
    )
    names = case.names(layer.weight for layer in layers)
    return [case.finding("poor_initialization", "severe", why, {"zero_layers": len(layers)}, layers=names)]
