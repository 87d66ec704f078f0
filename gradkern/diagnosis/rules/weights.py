"""Rules for weights that grow or shrink over the run.

May be wrong for weights that start near zero on purpose and for the new head of a fine-tuned model. Both are
usually small compared with all matrices together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradkern.diagnosis.case import Case, Floats
from gradkern.diagnosis.climb import falls_without_end, is_below_zero
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.optimizer import (
    decay_a_step,
    decay_outweighs,
    grows_by_itself,
    multiplied,
    pulled,
    shrinks_by_steps,
)

#: Norm of all matrices at the end over that at the start: healthy runs have 0.6 … 5.
GREW, SHRANK = 10.0, 0.2
#: Growth that counts if no step of an optimizer explains it.
GREW_BY_ITSELF = 3.0
#: Growth that counts if the loss falls without end, or something multiplies all weights, so that nothing will
#: end it. Measured with a penalty praised for 80 steps: 2.3 … 5.6.
GREW_ENDLESS = 1.5
#: Growth in the last quarter from which weights still grow; not required beyond a hundredfold.
GOES_ON = 0.05
HOPELESS = 100.0
#: Small initial weights find their size (of standard deviation 0.02, Adam makes eleven times as much in 150
#: steps): they grow linearly or slower, so that the second half of the run adds a third of what the first
#: did to their logarithm. What nothing limits grows exponentially, by as much in both.
SLOWS = 0.5
#: Weights average over the last ``1 / decay_a_step`` steps (Wang and Aitchison, "How to set AdamW's weight
#: decay as you scale model and dataset size", 2024, who find an epoch or more). Halved ones have collapsed if
#: that is less than a hundred steps.
HALVED, FAST_DECAY = 0.5, 0.01
#: Steps may also shrink weights that are of no use, if the loss falls by more than this.
LEARNED = 0.1
#: The same for one matrix, while the others keep their size.
LAYER_SHRANK = 0.01


def weight_growth(case: Case) -> list[Finding]:
    """The norm of the weights has grown tenfold and is still growing."""
    e = case.evidence
    at = np.flatnonzero(np.isfinite(case.weight_size) & (case.weight_size > 0))
    if len(at) < 3:
        return []
    size = case.weight_size[at]
    factor = float(size[-1] / size[0])
    goes_on = size[-1] >= (1 + GOES_ON) * size[-max(len(size) // 4, 2)]
    slows = _slows(e.update_steps[at], size)
    by_itself, endless = grows_by_itself(case) and not slows, falls_without_end(case)
    lasts, least = by_itself or is_below_zero(case), _least(case, by_itself, endless)
    expected = max(factor, _to_the_end(case, at, factor)) if lasts else factor
    if expected < least or not (goes_on or factor >= HOPELESS):
        return []
    onset = int(e.update_steps[at[np.argmax(size >= min(2, 0.999 * factor) * size[0])]])  # rounding
    norms = e.weight_norm[:, case.model.matrices].astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        grew = norms[at[-1]] / norms[at[0]]
    worst = [c for c, g in zip(case.model.matrices, grew) if np.isfinite(g) and g >= least]
    why = (
        f"The norm of the weights grew from {size[0]:.3g} to {size[-1]:.3g}, by a factor of {factor:.3g}, "
        f"and still grows: {'so does the fall of the loss below zero' if endless else 'nothing limits it'}."
    )
    severity = "warning" if case.trend.fell else "severe"
    limited = slows and not (endless or is_below_zero(case))
    if case.trend.fell and case.trend.kept and factor < HOPELESS and limited:
        severity = "info"
    layers = case.names(worst) if len(worst) < len(case.model.matrices) else ()
    numbers = {"growth": factor} | ({"by_itself": 1.0} if by_itself else {})
    return [case.finding("weight_growth", severity, why, numbers, layers=layers, first=onset)]


def _least(case: Case, by_itself: bool, endless: bool) -> float:
    """The growth that counts, which is less where its cause is known."""
    if endless or (by_itself and multiplied(case)):
        return GREW_ENDLESS
    return GREW_BY_ITSELF if by_itself or is_below_zero(case) else GREW


def _to_the_end(case: Case, at: NDArray[np.int64], factor: float) -> float:
    """The growth up to the last step, at the rate of the last two looks."""
    steps, size = case.evidence.update_steps[at], case.weight_size[at]
    rate = float(np.log(size[-1] / size[-2])) / max(int(steps[-1] - steps[-2]), 1)
    return factor * float(np.exp(np.clip(rate * (case.last_step - steps[-1]), 0.0, 50.0)))


def _slows(steps: NDArray[np.int64], size: Floats) -> bool:
    """Whether the logarithm of the size grows less in the second half of the steps than in the first."""
    middle = float(np.interp((steps[0] + steps[-1]) / 2, steps, np.log(size)))
    return float(np.log(size[-1])) - middle <= SLOWS * (middle - float(np.log(size[0])))


def weight_collapse(case: Case) -> list[Finding]:
    """The weights shrink towards zero: regularization outweighs the gradient."""
    e = case.evidence
    at = np.flatnonzero(np.isfinite(case.weight_size))
    if len(at) < 3 or not case.weight_size[at[0]]:
        return []
    size = case.weight_size[at]
    factor = float(size[-1] / size[0])
    norms = e.weight_norm[at][:, case.model.matrices].astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = norms[-1] / norms[0]
    gone = [c for c, r in zip(case.model.matrices, ratios) if r <= LAYER_SHRANK]
    taken = max(decay_a_step(case), pulled(case))
    learned = case.trend.fall > LEARNED and case.trend.kept  # the first weights may have been of no use
    by_steps = shrinks_by_steps(case) and (not learned or decay_outweighs(case))
    outweighed = factor <= HALVED and (decay_a_step(case) >= FAST_DECAY or by_steps)
    if factor > SHRANK and not gone and not outweighed:
        return []
    onset = int(e.update_steps[at[np.argmax(size <= (1 + factor) / 2 * size[0])]]) if factor < 1 else None
    of_one = factor > SHRANK and bool(gone)
    what = case.names(gone)[0] if of_one else "the weights"
    left = float(np.nanmin(ratios)) if of_one else factor
    why = (
        f"The norm of {what} fell to {left:.2g} of its initial value: weight decay removes more than the "
        "gradient adds."
    )
    severity = "warning" if case.trend.fell else "severe"
    layers = case.names(gone) if gone and len(gone) < len(case.model.matrices) else ()
    numbers = {"shrinkage": factor, "layers_gone": len(gone)}
    numbers |= {"decay_a_step": taken} if taken else {}
    numbers |= {"by_steps": 1.0} if by_steps else {}
    return [case.finding("weight_collapse", severity, why, numbers, layers=layers, first=onset)]
