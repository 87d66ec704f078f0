"""`travel`: how far optimizer steps go, compared with those of independent gradients.

A step of SGD with momentum b is ``lr * sum_k c_k g[t-k]`` with ``c_k = b**k``. If the gradients are
independent, the square of its length is on average ``lr² * sum_k c_k² |g[t-k]|²``. Gradients that agree make
it longer, and gradients each of which reverses the one before shorter: by up to (1 - b) / (1 + b), which is
0.05 for b = 0.9. Of Adam (Kingma and Ba 2015) the same holds for each element, relative to its root mean
square gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradkern.diagnosis.case import Case, Floats

#: Steps from which a step is made of several gradients.
SEVERAL = 8
#: Gradients that are this many times Adam's epsilon are divided by their own size.
ABOVE_EPSILON = 100.0


def travel(case: Case) -> Floats:
    """[L] squared lengths of steps, relative to those of independent gradients, at the steps with weights.

    1 for noise. Empty for other optimizers than SGD with momentum, Adam and AdamW, for groups that differ in
    their settings, and where steps were skipped. Of long runs only the steps before the first gap in the rows
    of gradients count.
    """
    e, group = case.evidence, _settings(case)
    if group is None or e.skipped.any():
        return np.zeros(0)
    whole = _without_gap(case)
    clipped = np.where(np.isfinite(e.clip_coef), e.clip_coef, 1.0)[:whole, None]
    squares = np.square(np.nan_to_num(e.rms[:whole].astype(np.float64)) * clipped)
    with np.errstate(invalid="ignore"):
        changes = e.update_ratio.astype(np.float64) * e.weight_norm
    at, found = np.searchsorted(e.steps, e.update_steps), []
    for row in np.flatnonzero((at + 1 >= SEVERAL) & (at < whole)).tolist():
        known = np.isfinite(changes[row]) & e.has_grad[at[row]]
        length = _independent(case, group, squares[: at[row] + 1], known)
        found.append(float(np.square(changes[row, known]).sum()) / length if length > 0 else np.nan)
    ratios = np.array(found)
    return ratios[np.isfinite(ratios)]


def _without_gap(case: Case) -> int:
    """How many steps from the first on have a row of gradients."""
    e = case.evidence
    same = np.flatnonzero(e.rows != np.arange(len(e.rows)))
    gaps = np.flatnonzero(np.diff(e.steps) != 1) + 1
    return min([len(e.rows), *same[:1].tolist(), *gaps[:1].tolist()])


def _settings(case: Case) -> Mapping[str, Any] | None:
    """The settings of all groups of the optimizer, if they are the same and known to `travel`."""
    groups = case.evidence.facts.get("optimizers") or []
    names = ("class", "lr", "momentum", "betas", "nesterov", "dampening")
    if not groups or any(group.get(name) != groups[0].get(name) for group in groups for name in names):
        return None
    first: Mapping[str, Any] = groups[0]
    if first.get("class") == "SGD":
        known = 0 < float(first.get("momentum") or 0) < 1 and not first.get("dampening")
    else:
        known = first.get("class") in ("Adam", "AdamW") and len(first.get("betas") or ()) == 2
    return first if known else None


def _independent(case: Case, group: Mapping[str, Any], squares: Floats, known: NDArray[np.bool_]) -> float:
    """The expected square of the length of the last of some steps, from [T, N] mean squares of gradients."""
    e, rate = case.evidence, float(case.evidence.lr[len(squares) - 1])
    squares, k = squares[::-1, known], np.arange(len(squares))[:, None]
    if group["class"] == "SGD":
        keep = float(group["momentum"])
        parts = keep * keep**k + (k == 0) if group.get("nesterov") else keep**k
        return float(rate**2 * (e.numel[known] * (parts**2 * squares).sum(axis=0)).sum())
    first, second = (float(beta) for beta in group["betas"])
    parts = (1 - first) * first**k / (1 - first ** len(k))
    mean = ((1 - second) * second**k * squares).sum(axis=0) / (1 - second ** len(k))
    if (np.sqrt(mean) < ABOVE_EPSILON * float(group.get("eps") or 1e-8)).any():
        return 0.0
    moving = e.numel * np.where(np.isfinite(e.ever_nonzero), e.ever_nonzero, 1.0)
    return float(rate**2 * (moving[known] * (parts**2 * squares).sum(axis=0) / mean).sum())
