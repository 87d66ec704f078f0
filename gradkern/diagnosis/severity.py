"""`eased`: reduces findings to "info" if the model learns well all the same."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from gradkern.diagnosis.case import STARVING, Case
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.gain import GUESSING

#: Kinds whose harm is that the model learns slowly or not at all. The others harm in other ways: a gradient
#: that is missing, parameters that are left out, weights that grow, a first loss that is far too large.
_SLOWING = ("dead_units", "saturation", "update_too_large", "weight_collapse")
#: A model of which this part is off does not use its size, whatever the loss says.
_LARGE_PART = 0.5
#: Growth of the weights from which large steps have replaced the first weights, whose scale lets the signal
#: pass. Measured for runs that learn well: healthy with a large first step up to 1.7, three hundred times the
#: rate 41.
_REPLACED = 10.0


def eased(case: Case, findings: Sequence[Finding]) -> list[Finding]:
    """The findings; "info" where their only harm would be slow learning, and the model learns well."""
    if not case.learns_well or _guesses(case):
        return list(findings)
    return [dataclasses.replace(f, severity="info") if _only_slows(case, f) else f for f in findings]


def _guesses(case: Case) -> bool:
    """Whether the loss ends at ln(outputs), where the outputs of a classifier are all alike. A penalty that
    was added to it makes a fall that is none."""
    last = case.model.layers[-1].shape if case.model.layers else ()
    guessing = math.log(last[0]) if last and last[0] > 1 else math.inf
    return GUESSING * guessing <= case.trend.end <= guessing / GUESSING


def _only_slows(case: Case, finding: Finding) -> bool:
    if finding.kind == "vanishing_gradient":
        return finding.evidence.get("decades_over_depth", STARVING) < STARVING
    if finding.kind == "update_too_large" and _grew(case) >= _REPLACED:
        return False
    if finding.kind == "dead_units" and _share(case, finding) >= _LARGE_PART:
        return False
    return finding.severity == "warning" and (finding.kind in _SLOWING or "summed" in finding.evidence)


def _grew(case: Case) -> float:
    """The norm of the weights at the end over that at the start; 1 if it is not known."""
    size = case.weight_size[np.isfinite(case.weight_size) & (case.weight_size > 0)]
    return float(size[-1] / size[0]) if len(size) else 1.0


def _share(case: Case, finding: Finding) -> float:
    """The part of the model's elements that its layers have."""
    numel = dict(zip(case.evidence.names, case.evidence.numel.tolist()))
    return float(sum(numel[name] for name in finding.layers)) / max(sum(numel.values()), 1)
