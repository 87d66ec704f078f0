"""What the run's optimizers do to the weights at a step, from their classes and settings."""

from __future__ import annotations

import re

import numpy as np

from gradkern.diagnosis.case import Case

#: Optimizers whose step hardly depends on the size of the gradient: they divide it by its own size, take its
#: sign (Lion, signSGD, Rprop) or make it orthogonal (Muon). Clipping then changes little.
NORMALIZING = re.compile(
    r"ada|rmsprop|lion|muon|sign|rprop|sophia|lamb|lars|prodigy|shampoo|soap|novograd|tiger", re.IGNORECASE
)
#: Those of them that move each element by about the learning rate.
ELEMENTWISE = re.compile(r"adam|lion|sign|tiger|adan", re.IGNORECASE)
#: Optimizers that remove ``lr * weight_decay`` of the weights at a step: decoupled ones, and SGD, whose
#: momentum repeats it. The size of the decay in an adaptive step (Adam's) is not known.
DECAYING = re.compile(r"^sgd|adamw|lion|muon|adafactor|adan|sophia|ademamix|tiger", re.IGNORECASE)
#: Weights that grow this much faster than the steps explain are multiplied by something else. The steps
#: between two recorded ones may be larger than these.
FASTER = 1.5
#: Part of a step that makes the weights longer, and how constant their growth is, if the steps do little else
#: than multiply them. If a loss is climbed instead, growth slows down (an adaptive optimizer's steps are of
#: one size) or speeds up (SGD's grow).
ALONG, STEADY = 0.75, 1.5
#: The same for weights that shrink. Adam's step along a decay, which is of one size for all elements, makes
#: normally distributed weights shorter by 0.8 of its length. Measured: 0.7 … 1 with a decay that outweighs
#: the gradient (10 runs), 0.5 if weights go back half of the way every few steps.
SHRINKING = 0.4
#: Cosine between a step and the weights from which the step is a decay (-0.8 if all elements move alike).
BACKWARDS = -0.75
#: Looks at weights that have doubled at one rate. Those that learn grow linearly or slower, so that the rate
#: would have halved. Measured with a penalty of the wrong sign: 2.0 % a step, within 6 %, up to a factor of
#: 7, while half of a step made them longer. Steps of size m in all directions make them grow by m² / 2.
#: Steps beyond a tenth of the weights (`SMALL`) may diverge at one rate as well.
LOOKS, DOUBLED, PART, SMALL = 5, 2.0, 0.4, 0.1
#: Single parameters that grow this much faster than their own steps (the scales of normalizations hardly
#: move), and which share of all. The same factor for all of them, within `STEADY`.
MULTIPLIED, SHARED = 2.0, 0.15


def classes(case: Case) -> list[str]:
    """The class of the optimizer of each parameter group; empty if unknown."""
    return [str(group.get("class", "")) for group in case.evidence.facts.get("optimizers") or []]


def is_adaptive(case: Case) -> bool:
    """Whether the step of one of the optimizers hardly depends on the size of the gradient."""
    return any(NORMALIZING.search(kind) for kind in classes(case))


def decay_a_step(case: Case) -> float:
    """The part of the weights that weight decay alone removes at a step, at the highest learning rate; 0 if
    it is not known, or is part of an adaptive step."""
    taken, rates = 0.0, case.evidence.lr[np.isfinite(case.evidence.lr) & (case.evidence.lr > 0)]
    rise = float(rates.max() / rates[0]) if len(rates) else 1.0  # facts have the rates of the first step
    for group in case.evidence.facts.get("optimizers") or []:
        kind = str(group.get("class", ""))
        if DECAYING.search(kind):
            rate, decay = (float(group.get(name) or 0) for name in ("lr", "weight_decay"))
            again = float(group.get("momentum") or 0) if kind.upper().startswith("SGD") else 0.0
            taken = max(taken, rise * rate * decay / (1 - min(again, 0.999)))
    return taken


def momentum(case: Case) -> float:
    """The largest momentum of SGD's kind; 0 if there is none or it is unknown."""
    groups = case.evidence.facts.get("optimizers") or []
    return max((float(group.get("momentum") or 0) for group in groups), default=0.0)


def asked_step(case: Case) -> float:
    """‖Δw‖ / ‖w‖ of a step without rounding, which suppresses small changes of 16-bit weights: of SGD's
    without its momentum, and of those that move each element by the learning rate; 0 if unknown."""
    e, kinds = case.evidence, classes(case)
    norm, size = e.total_norm[case.finite], case.weight_size[np.isfinite(case.weight_size)]
    rates = e.lr[np.isfinite(e.lr)]
    if not kinds or not len(norm) or not len(rates) or not len(size) or not size[0]:
        return 0.0
    if all(kind == "SGD" for kind in kinds):
        return float(np.median(rates) * np.median(norm) / size[0])
    if all(ELEMENTWISE.search(kind) for kind in kinds):
        return float(np.median(rates) * np.sqrt(e.numel[case.model.matrices].sum()) / size[0])
    return 0.0


def grows_by_itself(case: Case) -> bool:
    """Whether something multiplies the weights at each step, such as a decay of the wrong sign.

    Either the optimizer has one; or they grow faster than its steps can make them (their norm changes by at
    most the norm of the step); or by the same factor at all steps, which do little else; or by the same
    factor from the first step to the last.
    """
    groups = case.evidence.facts.get("optimizers") or []
    if any(float(group.get("weight_decay") or 0) < 0 for group in groups):
        return True
    e, size = case.evidence, case.weight_size
    known = np.flatnonzero(np.isfinite(size) & (size > 0) & np.isfinite(case.movement))
    if len(known) < 4:
        return False
    rates = np.diff(np.log(size[known])) / np.diff(e.update_steps[known])
    one_rate = len(rates) >= LOOKS and rates.min() > 0 and rates.max() < STEADY * rates.min()
    moves = np.log1p(case.movement[known])
    step = np.maximum(moves[1:], moves[:-1])
    one_rate &= float(np.median(case.movement[known])) < SMALL
    if one_rate and size[known[-1]] >= DOUBLED * size[known[0]] and np.median(rates / step) >= PART:
        return True
    if multiplied(case):
        return True
    growth, step = rates[-3:], step[-3:]
    lately = growth[-2:]
    steady = lately.min() > 0 and lately.max() < STEADY * lately.min()
    return bool((growth > FASTER * step).all() or (steady and (lately > ALONG * step[-2:]).all()))


def multiplied(case: Case) -> bool:
    """Whether many parameters lately grow by one factor, faster than their own steps can make them.

    A step changes the norm of a parameter by at most its own length. All matrices together hide this where
    some of them learn fast.
    """
    e = case.evidence
    if len(e.update_steps) < 4:
        return False
    norms, ratios = e.weight_norm[-3:].astype(np.float64), e.update_ratio[-3:].astype(np.float64)
    known = (np.isfinite(norms) & (norms > 0) & np.isfinite(ratios)).all(axis=0) & (ratios > 0).any(axis=0)
    if not known.any():
        return False
    rates = np.diff(np.log(norms[:, known]), axis=0) / np.diff(e.update_steps[-3:])[:, None]
    steps = np.log1p(np.maximum(ratios[1:, known], ratios[:-1, known]))
    faster = (rates > MULTIPLIED * steps).all(axis=0)
    found = rates[:, faster]
    if faster.sum() < 2:
        return False
    typical = float(np.median(found))
    alike = ((found > typical / STEADY) & (found < typical * STEADY)).all(axis=0)
    return bool(alike.sum() >= max(2, SHARED * known.sum()))


def pulled(case: Case) -> float:
    """The part of the weights by which one of the first steps moves them straight back to zero; 0 if it does
    not. Told by their norms before and after the step, and its length."""
    e, size = case.evidence, case.weight_size
    for i in range(min(len(size) - 1, 3)):
        part = float(case.movement[i])
        if e.update_steps[i + 1] == e.update_steps[i] + 1 and part > 0 and size[i] > 0:
            cosine = (float(size[i + 1] / size[i]) ** 2 - 1 - part**2) / (2 * part)
            if -1.1 <= cosine <= BACKWARDS:
                return part
    return 0.0


def decay_outweighs(case: Case) -> bool:
    """Whether the optimizer's weight decay, as a gradient, is typically larger than that of the loss. Both
    make up the direction of an adaptive step such as Adam's."""
    e, groups = case.evidence, case.evidence.facts.get("optimizers") or []
    decay = max((float(group.get("weight_decay") or 0) for group in groups), default=0.0)
    at = np.searchsorted(e.steps, e.update_steps)
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = decay * case.weight_size / e.total_norm[at]
    parts = parts[np.isfinite(parts)]
    return len(parts) > 0 and float(np.median(parts)) >= 1


def shrinks_by_steps(case: Case) -> bool:
    """Whether the optimizer's steps do little else than shrink the weights: their norm falls by a good part
    of the length of the steps, from the first look to the last. Steps in all directions leave it."""
    e, size = case.evidence, case.weight_size
    known = np.flatnonzero(np.isfinite(size) & (size > 0) & np.isfinite(case.movement))
    if len(known) < 3:
        return False
    rates = -np.diff(np.log(size[known])) / np.diff(e.update_steps[known])
    moves = -np.log1p(-np.minimum(case.movement[known], 0.99))
    longest = np.maximum(moves[1:], moves[:-1])
    if not (longest > 0).all() or not (rates > 0).all():
        return False
    return SHRINKING <= float(np.median(rates / longest)) <= FASTER
