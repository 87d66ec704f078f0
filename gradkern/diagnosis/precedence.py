"""The order of findings: alarms first, causes before their consequences."""

from __future__ import annotations

from collections.abc import Sequence

from gradkern.diagnosis.case import FEW_STEPS, STARVING, TOO_SMALL
from gradkern.diagnosis.finding import KINDS, SEVERITIES, Finding

#: Large updates this near to the start of a growing norm are its cause.
_EARLY = 20
#: A step that removes less than this part of the weights may be weight decay.
_DECAY = 0.5
#: Healthy steps stay below a tenth of the weights; a decay of that size needs no other explanation.
_LARGE_DECAY = 0.1
#: A step of about the size of the weights.
_OWN_SIZE = 0.7
#: Steps below this part of `TOO_SMALL` are not due to small weights.
_STILL = 0.01
#: Amplification of the signal over all layers from which float16, which ends at 65,504, overflows in sums of
#: a few dozen terms; layers that are counted, so that the product stays finite.
_OVERFLOW, _DEEP = 1e3, 100
#: Consequences of weights that changed too much.
_AFTERMATH = ("saturation", "vanishing_gradient", "dead_units")


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """Alarms first, causes before their consequences; the first one is the headline."""
    ranks = {id(f): -1.0 if "negated" in f.evidence else float(KINDS.index(f.kind)) for f in findings}
    alarms = [f for f in findings if f.is_alarm]
    for cause in alarms:
        for other in alarms:
            if _causes(cause, other) and ranks[id(cause)] > ranks[id(other)]:
                ranks[id(other)] = ranks[id(cause)] + 0.5
    return sorted(findings, key=lambda f: (not f.is_alarm, ranks[id(f)], -SEVERITIES.index(f.severity)))


def _causes(cause: Finding, other: Finding) -> bool:
    """Whether one finding explains another that `KINDS` puts first."""
    if "negated" in other.evidence:  # known from the graph, and the cause of everything else
        return False
    if cause.kind == "weight_growth" and "by_itself" in cause.evidence:
        if other.kind == "saturation" and other.first_step <= 1:  # before the weights could grow
            return False
        return other.kind in ("exploding_gradient", "update_too_large", *_AFTERMATH)
    explains = _EXPLAINS.get(cause.kind, _changed_weights_explain)
    return explains(cause, other)


def _collapse_explains(cause: Finding, other: Finding) -> bool:
    """Shrinking weights shrink gradients and make steps relatively large."""
    decay = other.evidence.get("largest_update_ratio", 1.0) < _DECAY  # the step is the decay itself
    decay |= cause.evidence.get("decay_a_step", 0.0) >= _LARGE_DECAY or "by_steps" in cause.evidence
    fading = other.kind in ("vanishing_gradient", "update_too_large", "dead_units")
    fading |= "norm_later" in other.evidence  # a norm that was larger at first
    fading |= "decades_over_depth" in other.evidence and other.first_step > cause.first_step
    return fading and (other.first_step > 2 or decay)


def _standstill_explains(cause: Finding, other: Finding) -> bool:
    """Weights that hardly move. For some layers this is certain, while dead units of a branch may not be."""
    if cause.layers:
        return other.kind == "dead_units" and other.severity == "warning"
    if other.kind == "poor_initialization":  # unless nothing moves for want of a gradient
        faint = other.evidence.get("decades_of_forward_signal", 0.0) < 0
        still = cause.evidence.get("median_update_ratio", TOO_SMALL) < _STILL * TOO_SMALL
        return faint and "first_slope" not in other.evidence and (still or not other.layers)  # none is small
    if "summed" in other.evidence:  # nothing moves, so gradients are alike
        return cause.evidence.get("median_update_ratio") == 0
    fades = other.kind == "vanishing_gradient"  # which stays as at the start
    return fades and other.evidence.get("decades_over_depth", STARVING) < STARVING


def _spike_explains(cause: Finding, other: Finding) -> bool:
    """The step at the spike changed the weights too much."""
    return (other.first_step > cause.first_step and other.kind == "weight_growth") or _threw(cause, other)


def _first_weights_explain(cause: Finding, other: Finding) -> bool:
    later = other.first_step > cause.first_step
    if "crest" in cause.evidence and other.kind in _AFTERMATH:  # units that are copies of each other
        return other.first_step >= cause.first_step
    if other.kind == "exploding_gradient":
        if "table_rms" in cause.evidence and "input_rms" in other.evidence:  # its vectors are the input
            return True
        return _starts_large(cause) and _starts_with(cause, other)
    if other.kind == "nonfinite_gradient":  # ones in place of random weights overflow 16 bits at once
        copies = "crest" in cause.evidence and other.first_step <= cause.first_step + _EARLY
        return copies or (other.first_step <= cause.first_step and _overflows(cause, other))
    if other.kind == "saturation" or (other.kind == "vanishing_gradient" and later):
        return (
            "gain" in cause.evidence
        )  # large weights drive units to the ends, at once or by their gradients
    return other.kind == "dead_units" and later


def _overflows(cause: Finding, other: Finding) -> bool:
    """Whether the initial weights amplify the signal so much that a loss in float16 is not finite."""
    amplified = cause.evidence.get("gain", 1.0) ** min(cause.evidence.get("layers", 0.0), _DEEP)
    return amplified >= _OVERFLOW and other.evidence.get("nonfinite_loss", 0.0) > 0


def _clipping_explains(cause: Finding, other: Finding) -> bool:
    """Steps are small because of clipping, unless they would be without it."""
    factor = max(cause.evidence.get("median_factor", 0.0), 1e-30)
    unclipped = other.evidence.get("median_update_ratio", TOO_SMALL) / factor
    return other.kind == "update_too_small" and unclipped >= TOO_SMALL


def _exploded_explains(cause: Finding, other: Finding) -> bool:
    """Large inputs put units at the ends of their range, and switch others off, from the first step on."""
    if "input_rms" in cause.evidence and other.kind == "vanishing_gradient":
        return True
    return _changed_weights_explain(cause, other)


def _stuck_units_explain(cause: Finding, other: Finding) -> bool:
    """Units that are at the ends of their range from the first step on are no consequence of the steps."""
    overflowed = other.kind == "nonfinite_gradient" and "norm_growth_before" in other.evidence
    return overflowed and cause.first_step <= 1 and other.first_step > cause.first_step + FEW_STEPS


def _batches_explain(cause: Finding, other: Finding) -> bool:
    """What is known of the batches is a cause; steps for one class after the other may then go too far. Steps
    for two kinds in turn may as well, unless they have the size of the weights and go to and fro for it."""
    if "batches_of_one_class" in cause.evidence:
        return other.kind in ("update_too_large", "weight_growth", "exploding_gradient", *_AFTERMATH)
    in_turn = {"in_turn", "lag_1_correlation"} <= cause.evidence.keys()
    largest = other.evidence.get("largest_update_ratio", _OWN_SIZE)
    return in_turn and other.kind == "update_too_large" and largest < _OWN_SIZE


def _changed_weights_explain(cause: Finding, other: Finding) -> bool:
    """Weights that changed too much, or a signal that fades or explodes, explain what follows."""
    later = other.first_step > cause.first_step
    if other.kind in _AFTERMATH and later and _changed_the_weights(cause):
        return True
    if other.kind == "exploding_gradient" and "decades_over_depth" in other.evidence:
        return later and _changed_the_weights(cause)  # the weights did not have this gain at first
    if cause.kind == "update_too_large" and "first_slope" in other.evidence:
        thrown = cause.severity == "severe" and cause.evidence.get("largest_update_ratio", 0.0) >= _OWN_SIZE
        return thrown and other.severity == "warning" and not later  # there was no want of a gradient
    if cause.kind == "update_too_large" and other.kind == "exploding_gradient":
        return _starts_before(cause, other)  # the steps were too large before the norm grew
    if cause.kind in ("vanishing_gradient", "exploding_gradient") and other.kind == "dead_units":
        late = other.first_step > cause.first_step + _EARLY  # steps that only the last layers got
        return late or other.evidence.get("dead_share", 1.0) < 1.0  # inactive because of the signal
    return False


#: By the kind of the cause; `_changed_weights_explain` for the others.
_EXPLAINS = {
    "weight_collapse": _collapse_explains,
    "update_too_small": _standstill_explains,
    "gradient_spike": _spike_explains,
    "poor_initialization": _first_weights_explain,
    "always_clipping": _clipping_explains,
    "saturation": _stuck_units_explain,
    "exploding_gradient": _exploded_explains,
    "loss_oscillating": _batches_explain,
}


def _threw(spike: Finding, other: Finding) -> bool:
    """Whether a run that was calm before a spike broke down after it."""
    broken = other.kind in ("nonfinite_gradient", "update_too_large", *_AFTERMATH)
    after = other.first_step > spike.first_step and broken
    at_it = other.kind in ("exploding_gradient", "update_too_large")  # the step of the spike itself
    after |= other.first_step >= spike.first_step and at_it
    after |= other.kind == "update_too_large" and other.last_step < spike.first_step  # the loss fell since
    return after and "out_of_calm" in spike.evidence


def _starts_large(cause: Finding) -> bool:
    """Whether the initial weights are too large or constant, which is a cause and no consequence."""
    signal = cause.evidence.get("decades_of_forward_signal", 0.0)
    return signal > 0 or not {"gain", "crest", "recurrent_gain"}.isdisjoint(cause.evidence)


def _starts_with(cause: Finding, other: Finding) -> bool:
    """Whether a gradient explodes over the depth or at the start, and as early as its cause."""
    of_weights = not {"decades_over_depth", "norm_later"}.isdisjoint(other.evidence)
    return of_weights and other.first_step <= cause.first_step + _EARLY


def _changed_the_weights(cause: Finding) -> bool:
    """Whether a finding explains weights that changed too much."""
    exploded = cause.kind == "exploding_gradient" and "growth" in cause.evidence
    exploded &= "summed" not in cause.evidence
    return exploded or cause.kind in ("update_too_large", "weight_growth")


def _starts_before(cause: Finding, other: Finding) -> bool:
    of_its_own = not {"norm_later", "summed", "uphill", "input_rms", "first_error"}.isdisjoint(other.evidence)
    return not of_its_own and cause.first_step <= max(other.first_step, _EARLY)
