"""Rules for bad initial weights: all equal, all zero, or with a scale that makes the signal grow or fade.

May be wrong for layers that are meant to start at zero (the second half of LoRA, a gate, a last layer); a
single one of them is not reported. The rule for the first loss may be wrong for a model that is resumed on
other data.
"""

from __future__ import annotations

import math

import numpy as np

from gradkern.diagnosis.case import FEW_STEPS, Case, Floats
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.gain import classes_of, decides, first_gain, guesses, multiplies
from gradkern.diagnosis.model import LOOKUP, Layer
from gradkern.diagnosis.profile import decades
from gradkern.diagnosis.rules.alike import constant_weights, zero_weights
from gradkern.diagnosis.rules.amplification import (
    large_gain,
    raised_input,
    severity_of,
    signals,
)
from gradkern.diagnosis.trend import trend_of

#: Decades of the forward signal over a chain in the first steps. Healthy: -1.9 … 1; faulty: 2.6 or more.
FORWARD_DECADES = 2.3
FIRST_STEPS = 5
#: The part of the signal that is left behind all layers, relative to He's gain (of tanh, to 1), and
#: ``‖g‖ ‖w‖`` over the loss if nothing comes back either. Without biases 30 layers with PyTorch's
#: initialization leave 1e-11 of it. Where so little is left, healthy runs have 0.27 or more of the latter
#: (1,971 runs), weights of 0.01 at most 3e-6 (10 runs), ten and more layers of tanh 0.002 … 0.02. The part of
#: the run, and at least ten steps, in which the loss then has to stand still.
FADED, NOTHING, AT_FIRST = 1e-3, 0.03, 0.15
#: Largest estimate of the rms of the outputs' input at the first steps, if the loss stands still as well.
#: Healthy: 0.036 or more (591 runs); weights of 0.01 and gains of 0.3: at most 0.008 (12 runs). And the gain
#: of matrices that are named: less than PyTorch's, 0.58.
FAINT, SMALL_GAIN = 0.015, 0.5
#: Steps whose first half tells whether the loss stands still: small weights of four layers need 20 to grow.
STILL = 40
#: rms of a lookup table before the first step: PyTorch's is 1, others are smaller.
TABLE = 10.0
#: Gain of the recurrent matrix of an RNN: an orthogonal one has 1, PyTorch's 0.58; the state is multiplied by
#: it at each time step.
RECURRENT_GAIN = 1.8
#: First loss over ln(classes), the loss of guessing. Healthy: 0.9 … 3, and 11 for a frozen network with
#: adapters, which ended at 0.57. Runs whose first loss alone is bad end at 0.99 or more (10 runs).
FIRST_LOSS, RECOVERED = 10.0, 0.8
LONGEST, THROWN = 1.5, 1.5


def poor_initialization(case: Case) -> list[Finding]:
    """The first that applies: constant weights, zero weights, a signal that grows or fades, a huge first
    loss."""
    if not len(case.evidence.rows):
        return []
    for rule in (
        constant_weights,
        zero_weights,
        _recurrent,
        _table,
        large_gain,
        raised_input,
        _faded,
        _forward,
        _faint,
        _first_loss,
    ):
        found = rule(case)
        if found:
            return found
    return []


def _faded(case: Case) -> list[Finding]:
    """The weights start so small that neither the signal nor a gradient passes, the loss stays where it is at
    first, and the run does not make up for it. Biases that are not zero would add a signal of their own."""
    model = case.model
    layers = [layer for layer in model.layers if multiplies(case, layer)]
    values = [first_gain(case, layer) for layer in layers]
    if model.normalizes or "sigmoid" in model.words or len(layers) < 3 or min(values) <= 0:
        return []
    kept = 1.0 if model.squashes and not model.gates else math.sqrt(2)  # a tanh keeps a small signal as it is
    left = float(np.prod(np.array(values[:-1]) / kept))
    slope = _first_slope(case) / abs(case.trend.start or 1.0)
    if left > FADED or slope > NOTHING or not case.trend.known:
        return []
    if not _stands_still(case, AT_FIRST) or case.learns_well:
        return []
    typical = float(np.median(values))
    why = (
        f"Before the first step each of {len(layers)} layers multiplies its input by about {typical:.2f} "
        f"(1.4 with He initialization), which leaves {left:.0e} of it: the initial weights are too small."
    )
    numbers = {"decades_of_forward_signal": math.log10(left), "layers": len(layers), "first_slope": slope}
    names = case.names(layer.weight for layer in layers)
    return [case.finding("poor_initialization", severity_of(case), why, numbers, layers=names)]


def _first_slope(case: Case) -> float:
    """``‖g‖ ‖w‖`` of all matrices at the first step; inf if it is not known. What the output's bias learns,
    which needs no signal, is left out."""
    e, columns, size = case.evidence, case.model.matrices, case.weight_size[np.isfinite(case.weight_size)]
    squares = e.rms[0, columns].astype(np.float64) ** 2 * e.numel[columns]
    return (
        float(np.sqrt(np.nansum(squares)) * size[0]) if len(size) and np.isfinite(squares).any() else math.inf
    )


def _stands_still(case: Case, part: float = 0.5) -> bool:
    """Whether the loss does not fall in the first part of the run."""
    losses = case.evidence.loss[np.isfinite(case.evidence.loss)]
    return not trend_of(losses[: max(int(len(losses) * part), FEW_STEPS)]).fell


def _table(case: Case) -> list[Finding]:
    """A lookup table whose vectors are far larger than what layers expect of their inputs."""
    e, large = case.evidence, {}
    early = len(e.update_steps) and e.update_steps[0] <= e.steps[0] + 20
    for column in case.model.matrices if early and not case.model.normalizes else []:
        size = float(np.nan_to_num(e.weight_norm[0, column])) / math.sqrt(max(int(e.numel[column]), 1))
        if LOOKUP.search(case.model.kind(column)) and size >= TABLE:
            large[column] = size
    if not large:
        return []
    worst, names = max(large.values()), case.names(large)
    why = (
        f"The vectors of {names[0]} start with an rms of {worst:.2g} (1 by default): what follows is as many "
        "times too large."
    )
    return [case.finding("poor_initialization", severity_of(case), why, {"table_rms": worst}, layers=names)]


def _is_mean(case: Case, last: Layer) -> bool:
    """Whether the loss is a mean over the batch, not a sum. The gradient of the output's bias is then a mean
    of differences of two distributions, whose norms are at most sqrt(2)."""
    e = case.evidence
    if last.bias is None:
        return False
    norms = e.rms[:FIRST_STEPS, last.bias] * math.sqrt(e.numel[last.bias])
    return bool(np.isfinite(norms).any() and np.nanmax(norms) <= LONGEST)


def _is_thrown_about(case: Case, last: Layer) -> bool:
    """Whether the first losses rise by half from one step to the next, if the output's bias does not tell
    whether they are means. Guesses have nearly the same loss in all batches, also as a sum."""
    e = case.evidence
    if last.bias is not None and np.isfinite(e.rms[:FIRST_STEPS, last.bias]).any():
        return False
    losses = e.loss[: 2 * FIRST_STEPS]
    return bool((losses[1:] >= THROWN * np.abs(losses[:-1])).any()) and bool(np.isfinite(losses).all())


def _recurrent(case: Case) -> list[Finding]:
    """A recurrent matrix that multiplies the state at each time step."""
    e = case.evidence
    sick = {}
    for layer in case.model.layers:
        plain = layer.kind.lower() in ("rnn", "rnncell") and "weight_hh" in e.names[layer.weight]
        if plain and first_gain(case, layer) >= RECURRENT_GAIN:
            sick[layer.weight] = first_gain(case, layer)
    if not sick:
        return []
    worst = max(sick.values())
    why = (
        f"The recurrent weights multiply the state by about {worst:.1f} at each time step (1 for an "
        "orthogonal matrix): over a sequence gradients explode, or the units saturate."
    )
    names = case.names(sick)
    return [
        case.finding("poor_initialization", severity_of(case), why, {"recurrent_gain": worst}, layers=names)
    ]


def _forward(case: Case) -> list[Finding]:
    """The forward signal grows or fades by orders of magnitude from the first step on."""
    worst, at = 0.0, None
    for profile in case.profiles:
        inner = profile.forward[:FIRST_STEPS, 1:] if profile.depth > 3 else profile.forward[:FIRST_STEPS]
        value = _typical(decades(inner))
        if abs(value) > abs(worst):
            worst, at = value, profile
    if at is None or abs(worst) < FORWARD_DECADES:
        return []
    word = "grows" if worst > 0 else "fades"
    why = (
        f"From the first step on the forward signal {word} by {abs(worst):.1f} decades over {at.depth} "
        f"layers: the initial weights are too {'large' if worst > 0 else 'small'}."
    )
    numbers = {"decades_of_forward_signal": worst, "layers_in_chain": at.depth}
    names = case.names(layer.weight for layer in at.chain)
    return [case.finding("poor_initialization", severity_of(case), why, numbers, layers=names)]


def _faint(case: Case) -> list[Finding]:
    """Hardly anything of the signal reaches the outputs, and the loss stays where it is for half of the
    run."""
    model, found = case.model, signals(case)
    level = float(found.get(len(model.layers) - 1, np.ones(1)).max())
    if model.normalizes or level > FAINT or case.trend.count < STILL or not _stands_still(case):
        return []
    name = case.evidence.names[model.layers[-1].weight]
    why = (
        f"At the first steps the input of {name} has an rms of about {level:.1g}: "
        "hardly anything of the signal reaches the outputs, and no gradient comes back."
    )
    small = [x.weight for x in model.layers if multiplies(case, x) and 0 < first_gain(case, x) < SMALL_GAIN]
    numbers = {"decades_of_forward_signal": math.log10(level), "layers": len(model.layers)}
    return [case.finding("poor_initialization", severity_of(case), why, numbers, layers=case.names(small))]


def _typical(values: Floats) -> float:
    """The least of the first steps (of two for a signal that fades, since training mends that soon), with its
    sign; 0 where they differ in sign. The estimate of one step is wrong where the terms of a bias's gradient
    cancel over the batch."""
    known = values[np.isfinite(values)]
    known = known[:2] if (known[:2] < 0).all() else known
    if not len(known) or known.min() * known.max() <= 0:
        return 0.0
    return float(known[np.abs(known).argmin()])


def _first_loss(case: Case) -> list[Finding]:
    """The first loss is far above that of guessing. Only for known losses of classifiers."""
    e = case.evidence
    classes = classes_of(case) or 2 * decides(case)
    if not classes:
        return []
    last, expected = case.model.layers[-1], math.log(classes)
    if not math.isfinite(e.loss[0]) or e.loss[0] < FIRST_LOSS * expected:
        return []
    if not (_is_mean(case, last) or guesses(case) or _is_thrown_about(case, last)):
        return []
    why = (
        f"The first loss is {e.loss[0]:.3g}, while guessing gives ln {classes} = {expected:.2f}: the initial "
        "outputs are far too large."
    )
    numbers = {"first_loss": float(e.loss[0]), "ln_classes": expected}
    recovered = case.trend.kept and case.trend.end < RECOVERED * expected
    severity = "info" if recovered else severity_of(case)
    return [case.finding("poor_initialization", severity, why, numbers, layers=case.of_layers([last]))]
