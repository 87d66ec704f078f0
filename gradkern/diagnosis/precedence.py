"""Which finding is the headline: causes before consequences."""

from __future__ import annotations

from collections.abc import Sequence

from gradkern.diagnosis.finding import KINDS, SEVERITIES, Finding

#: Steps within which large updates and a growing norm belong to the same start.
_EARLY = 20


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """Alarms first, causes before their consequences; the first one is the headline."""
    ranks = {id(f): float(KINDS.index(f.kind)) for f in findings}
    by_kind = {f.kind: f for f in findings if f.is_alarm}
    for cause in by_kind.values():
        for other in by_kind.values():
            if _brings_about(cause, other) and ranks[id(cause)] > ranks[id(other)]:
                ranks[id(other)] = ranks[id(cause)] + 0.5
    return sorted(findings, key=lambda f: (not f.is_alarm, ranks[id(f)], -SEVERITIES.index(f.severity)))


def _brings_about(cause: Finding, other: Finding) -> bool:
    """Whether one finding explains another that `KINDS` puts first."""
    pair = cause.kind, other.kind
    if cause.kind == "weight_collapse":  # what fades takes the gradient along, and makes steps look large
        return other.kind in ("vanishing_gradient", "update_too_large", "dead_units") and other.first_step > 2
    if cause.kind == "poor_initialization" and other.kind == "dead_units":
        return other.first_step > cause.first_step
    if cause.kind in ("update_too_large", "weight_growth"):
        depth = "decades_over_depth" in other.evidence
        if other.kind == "exploding_gradient" and cause.kind == "update_too_large":
            # steps that were too large before the norm grew, or before the weights had their gain
            return other.first_step > cause.first_step if depth else _starts_before(cause, other)
        if other.kind in ("saturation", "vanishing_gradient", "dead_units"):  # the model was well at first
            return other.first_step > cause.first_step
    if cause.kind == "exploding_gradient" and other.kind in (
        "vanishing_gradient",
        "saturation",
        "dead_units",
    ):
        if "norm_later" in cause.evidence and other.first_step > cause.first_step:
            return True  # the first steps threw the weights away
    if pair == ("always_clipping", "update_too_small"):
        return True
    if cause.kind in ("vanishing_gradient", "exploding_gradient") and other.kind == "dead_units":
        return other.evidence.get("dead_share", 1.0) < 1.0  # units that are off because the signal is
    return False


def _starts_before(cause: Finding, other: Finding) -> bool:
    return "norm_later" not in other.evidence and cause.first_step <= max(other.first_step, _EARLY)
