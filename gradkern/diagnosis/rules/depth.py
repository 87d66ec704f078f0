"""Rules for gradients that vanish or explode over the depth of the model.

Three profiles over each chain of layers (`profile`) are compared: the weights' gradients, the biases' (the
backward signal), and their ratio (the forward signal). A wrong gain shows in the last two only: over depth
one grows as the other shrinks, and the weights' gradients, their product, stay level.

May be wrong if layers with similar names do not follow each other (unless the order of execution is known),
and for a run that is just leaving a plateau.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradkern.diagnosis.case import FEW_STEPS, STARVING, Case
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.profile import Profile, decades, median
from gradkern.diagnosis.trend import trend_of

#: Decades of rms from the first layer to the last. Healthy models: -1.7 … 1.7 once they learn; vanishing
#: ones: 3.6 … 25.
VANISHING = 2.7
EXPLODING = -2.7
#: The backward signal of a network whose forward signal grows as well (`FORWARD`): healthy -1.0 … 2, faulty
#: -3 … -14.
EXPLODING_BACKWARD, FORWARD = -2.0, 1.5
#: In shorter runs the gradient has to fall by `STARVING` decades: networks of three and four sigmoids that
#: learn start at 2.8 … 3.9 and leave that after 40 to 200 steps (6 runs). Less than that is never severe.
PLATEAU = 50
#: Twice the steps that a profile needs. Shorter runs have to exceed the limit by the margin between healthy
#: and faulty runs (Muon's first ten steps: 2.76).
FIRST_STEPS, MARGIN = 2 * FEW_STEPS, 0.9
#: Normalization without residual connections makes gradients grow towards the input by up to 1.47 a layer
#: (Yang et al., "A mean field theory of batch normalization", 2019): 0.17 decades.
NORMALIZED_SLOPE = 0.17
#: Part of the second half of a run that must exceed the limit.
LASTING = 0.5
#: Part of a run, from its start, that counts if the gradient falls by `STARVING` decades and the loss stands
#: still for ten steps or more. Six of 1,971 healthy runs start above `VANISHING` for a tenth to a seventh of
#: the run, by up to 4.1, and their loss falls.
AT_FIRST = 0.1
#: While the layers before it get no gradient, the bias of the outputs learns how frequent classes are, which
#: lowers the loss a little (measured at 16 layers with PyTorch's initialization: by 0.05 in 16 steps).
BY_BIASES = 0.1
#: Decades at the first steps from which the first layers wait for the others. Healthy runs have up to 4.5.
HOPELESS, HOPELESS_STEPS = 5.5, 5
#: A layer is starved if its rms is this part of the best of its chain, or less.
STARVED = 1e-2


@dataclass(frozen=True)
class AffectedChain:
    """A chain whose gradients vanish or explode."""

    profile: Profile
    signal: str
    """"weights" or "biases": what shows it."""
    values: NDArray[np.floating]
    """[P] decades."""
    mask: NDArray[np.bool_]
    """[P] where it shows."""

    @property
    def typical(self) -> float:
        return float(np.median(self.values[self.mask]))


def vanishing_gradient(case: Case) -> list[Finding]:
    """Gradients at the input are a small part of those at the output."""
    found, long = [], len(case.evidence.steps) >= PLATEAU
    bypassed = [] if case.learns_well else case.bypassed
    for profile in [*_usable(case, case.profiles), *_usable(case, bypassed)]:
        least = VANISHING if long and profile in case.profiles else STARVING
        for signal, logs in (("weights", profile.weight), ("biases", profile.bias)):
            values = decades(logs)
            with np.errstate(invalid="ignore"):
                affected = AffectedChain(profile, signal, values, values >= least)
            if _lasts(affected) or _lasted_while_the_loss_stood_still(case, affected):
                found.append(affected)
    if not found:
        return []
    worst = max(found, key=lambda chain: chain.typical)
    layers, factor = _starved(case, worst), 10.0**-worst.typical
    why = (
        f"Over {worst.profile.depth} layers the gradient falls to {factor:.0e} of its size at the output "
        f"(rms of the gradients of the {worst.signal}): the first layers hardly learn."
    )
    mild = worst.typical < STARVING or _recovers(worst)
    return [_finding(case, "vanishing_gradient", worst, layers, why, "warning" if mild else "severe")]


def exploding_over_depth(case: Case) -> list[Finding]:
    """Gradients grow by orders of magnitude from the output to the input."""
    found: list[AffectedChain] = []
    for profile in _usable(case, case.profiles):
        allowance = _margin(case) + (NORMALIZED_SLOPE * profile.depth if case.model.normalizes else 0.0)
        weights, biases, forward = decades(profile.weight), decades(profile.bias), decades(profile.forward)
        with np.errstate(invalid="ignore"):
            both = (biases <= EXPLODING_BACKWARD - allowance) & (forward >= FORWARD)
            chains = (
                AffectedChain(profile, "weights", weights, weights <= EXPLODING - allowance),
                AffectedChain(profile, "biases", biases, both),
            )
        found += filter(_lasts, chains)
    if not found:
        return []
    worst = min(found, key=lambda chain: chain.typical)
    why = (
        f"Over {worst.profile.depth} layers, from the output to the input, the gradient grows by a factor of "
        f"{10.0**-worst.typical:.0e}: every layer amplifies it."
    )
    severity = "warning" if case.trend.fell else "severe"
    return [_finding(case, "exploding_gradient", worst, _swollen(case, worst), why, severity)]


def _margin(case: Case) -> float:
    """Decades by which a short run has to exceed the limit."""
    return MARGIN if len(case.evidence.steps) < FIRST_STEPS else 0.0


def _usable(case: Case, profiles: list[Profile]) -> list[Profile]:
    return [p for p in profiles if len(p.at) >= FEW_STEPS] if len(case.evidence.steps) >= FEW_STEPS else []


def _lasts(affected: AffectedChain) -> bool:
    """Whether more than half of the points in the second half of the run show it."""
    known = np.isfinite(affected.values)
    if not known.any():
        return False
    last = np.flatnonzero(known)
    last = last[len(last) // 2 :]
    return bool(affected.mask[last].mean() > LASTING)


def _lasted_while_the_loss_stood_still(case: Case, affected: AffectedChain) -> bool:
    """Whether the run recovered late: the first half of the points shows it (or a fifth, if hardly any
    gradient is left and the run does not learn well), and the loss did not fall during that time."""
    known = np.flatnonzero(np.isfinite(affected.values))
    other = np.flatnonzero(~affected.mask[known])
    lead = int(other[0]) if len(other) else len(known)
    if not lead:
        return False
    e = case.evidence
    count = int(e.rows[affected.profile.at[known[lead - 1]]]) + 1
    typical = float(np.median(affected.values[known[:lead]]))
    starved = typical >= STARVING and not case.learns_well
    if starved and typical >= HOPELESS and count >= HOPELESS_STEPS:
        return True
    if lead < LASTING * len(known) and not (starved and count >= AT_FIRST * len(e.steps)):
        return False
    losses = e.loss[:count]
    trend = trend_of(losses[np.isfinite(losses)])
    if starved:
        return trend.count >= FEW_STEPS and not (trend.fell and trend.fall > BY_BIASES)
    return trend.count >= 2 * FEW_STEPS and not trend.fell


def _recovers(affected: AffectedChain) -> bool:
    """Whether the last quarter is clearly better than the first."""
    values = affected.values[np.isfinite(affected.values)]
    quarter = max(len(values) // 4, 1)
    return bool(np.median(values[-quarter:]) < 0.6 * np.median(values[:quarter]))


def _starved(case: Case, affected: AffectedChain) -> tuple[str, ...]:
    logs = median(
        (affected.profile.weight if affected.signal == "weights" else affected.profile.bias)[affected.mask]
    )
    best = np.nanmax(logs)
    with np.errstate(invalid="ignore"):
        low = logs <= best + np.log10(STARVED)
    return case.of_layers(affected.profile.named(low))


def _swollen(case: Case, affected: AffectedChain) -> tuple[str, ...]:
    logs = median(
        (affected.profile.weight if affected.signal == "weights" else affected.profile.bias)[affected.mask]
    )
    with np.errstate(invalid="ignore"):
        high = logs >= np.nanmin(logs) - np.log10(STARVED)
    return case.of_layers(affected.profile.named(high))


def _finding(
    case: Case, kind: str, affected: AffectedChain, layers: tuple[str, ...], why: str, severity: str
) -> Finding:
    at = np.flatnonzero(affected.mask)
    profile = affected.profile
    numbers = {
        "decades_over_depth": affected.typical,
        "decades_of_weights": float(median(decades(profile.weight[at]))),
        "decades_of_forward_signal": float(median(decades(profile.forward[at]))),
        "layers_in_chain": profile.depth,
    }
    numbers = {k: v for k, v in numbers.items() if np.isfinite(v)}
    first, last = case.step(int(profile.at[at[0]])), case.step(int(profile.at[at[-1]]))
    if not case.model.knows_order:
        why += " The layers are taken in the order in which the model lists them."
    return case.finding(kind, severity, why, numbers, layers=layers, first=first, last=last)
