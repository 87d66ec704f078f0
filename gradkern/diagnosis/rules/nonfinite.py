"""The rule for inf and NaN: which gradient had them first, and whether the steps with them were skipped.

May be wrong if the training loop repairs gradients after they were recorded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradkern.diagnosis.case import Case
from gradkern.diagnosis.finding import Finding

#: A loss scaler finds its scale by overflows: with the defaults of torch.amp.GradScaler, at most 16 halvings
#: of 2**16 at the beginning, and then one attempt every 2,000 steps.
SCALER_PROBES, SCALER_INTERVAL = 16, 2000
#: Growth of the norm in the last finite steps from which it has probably overflowed.
OVERFLOW_GROWTH = 1e3


def nonfinite_gradient(case: Case) -> list[Finding]:
    """Any step whose gradients or loss are not finite."""
    e = case.evidence
    bad = np.flatnonzero(~np.isfinite(e.total_norm) | (e.has_loss & ~np.isfinite(e.loss)))
    if not len(bad):
        return []
    first = int(bad[0])
    lasting = bool(np.isin(np.arange(len(e.steps))[-max(len(e.steps) // 10, 3) :], bad).all())
    severity = _severity(case, bad, lasting)
    columns = _first_nonfinite(case, first)
    growth = _growth_before(case, first)
    evidence = {
        "nonfinite_steps": len(bad),
        "nonfinite_parameters": len(columns),
        "nonfinite_loss": float(e.has_loss[first] and not np.isfinite(e.loss[first])),
        "norm_growth_before": growth,
    }
    source = _source(case, columns)
    return [
        case.finding(
            "nonfinite_gradient",
            severity,
            _why(case, first, bad, lasting, source, growth),
            evidence,
            layers=case.names(source),
            first=int(e.steps[first]),
            last=int(e.steps[bad[-1]]),
        )
    ]


def _severity(case: Case, bad: NDArray[np.int64], lasting: bool) -> str:
    e = case.evidence
    scaled = np.isfinite(e.loss_scale).any()
    if scaled and not lasting:
        allowed = SCALER_PROBES + len(e.steps) // SCALER_INTERVAL
        if len(bad) <= allowed:
            return "info"
    return "severe" if lasting else "warning"


def _first_nonfinite(case: Case, first: int) -> NDArray[np.int64]:
    """Columns with inf or NaN at the first such step of which all parameters were read."""
    e = case.evidence
    at = np.flatnonzero(e.rows >= first)
    bad = at[(e.nonfinite[at] > 0).any(axis=1)] if len(at) else at
    if not len(bad):
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(e.nonfinite[bad[0]] > 0)


def _source(case: Case, columns: NDArray[np.int64]) -> list[int]:
    """The origin: the last of the layers in the order of execution, because NaN spreads towards the input.
    None if every gradient has NaN."""
    e = case.evidence
    poisoned = _poisoned_weights(case)
    if poisoned:
        return poisoned
    there = e.has_grad.any(axis=0)
    if not len(columns) or len(columns) >= there.sum():
        return []
    wanted = set(columns.tolist())
    latest = [column for column in case.model.order if column in wanted][-1]
    module = e.names[latest].rpartition(".")[0]
    return [c for c in wanted if e.names[c].rpartition(".")[0] == module]


def _poisoned_weights(case: Case) -> list[int]:
    """Weights that were NaN at a step with weight norms, while others were not."""
    e = case.evidence
    for norms in e.weight_norm:
        sick = np.isinf(norms) | (np.isnan(norms) & np.isfinite(np.nanmax(e.weight_norm, axis=0, initial=-1)))
        sick &= (e.weight_norm > 0).any(axis=0)
        if sick.any():
            return [] if sick.mean() > 0.5 else np.flatnonzero(sick).tolist()
    return []


def _growth_before(case: Case, first: int) -> float:
    norm = case.evidence.total_norm[:first]
    norm = norm[np.isfinite(norm) & (norm > 0)]
    if len(norm) < 4:
        return float("nan")
    return float(np.median(norm[-2:]) / np.median(norm[: max(len(norm) // 2, 2)]))


def _why(case: Case, first: int, bad: Any, lasting: bool, source: list[int], growth: float) -> str:
    e = case.evidence
    where = f"first in {case.names(source)[-1]}" if source else "in all gradients at once"
    if growth >= OVERFLOW_GROWTH:
        how = f"The norm had grown by a factor of {growth:.0e} before, so it overflowed."
    elif e.has_loss[first] and not np.isfinite(e.loss[first]):
        how = "The loss was not finite either: check that batch and the loss function."
    else:
        how = "The loss was finite, so the backward pass produced it."
    after = "All later steps have it too." if lasting else f"{len(bad)} of {len(e.steps)} steps have it."
    return f"Inf or NaN at step {e.steps[first]}, {where}. {how} {after}"
