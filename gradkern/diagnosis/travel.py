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

from gradkern.diagnosis.case import Case, Floats

#: Steps from which a step is made of several gradients.
SEVERAL = 8
#: Gradients that are this many times Adam's epsilon are divided by their own size.
ABOVE_EPSILON = 100.0


def travel(case: Case) -> Floats:
    """[L] squared lengths of steps, relative to those of independent gradients, at the steps with weights.

    1 for noise. Empty for other optimizers than SGD with momentum, Adam and AdamW, for groups that differ in
    their settings, and where steps were left out or skipped.
    """
    e, group = case.evidence, _settings(case)
    if group is None or e.skipped.any() or (np.diff(e.steps) != 1).any():
        return np.zeros(0)
    norm = e.total_norm * np.where(np.isfinite(e.clip_coef), e.clip_coef, 1.0)
    at = np.searchsorted(e.steps, e.update_steps)
    with np.errstate(invalid="ignore"):
        changes = e.update_ratio.astype(np.float64) * e.weight_norm
    looks = [row for row, t in enumerate(at.tolist()) if SEVERAL <= t + 1 <= len(norm)]
    found = []
    for row in looks:
        known = np.isfinite(changes[row]) & e.has_grad.any(axis=0)
        length = _independent(case, group, norm[: at[row] + 1], known)
        found.append(float(np.square(changes[row, known]).sum()) / length if length > 0 else np.nan)
    ratios = np.array(found)
    return ratios[np.isfinite(ratios)]


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


def _independent(case: Case, group: Mapping[str, Any], norm: Floats, known: np.ndarray[Any, Any]) -> float:
    """The expected square of the length of the last of some steps."""
    e, rate = case.evidence, float(case.evidence.lr[len(norm) - 1])
    squares = np.square(norm[::-1].astype(np.float64))
    k = np.arange(len(squares))
    if group["class"] == "SGD":
        keep = float(group["momentum"])
        parts = keep**k if not group.get("nesterov") else np.append(1 + keep, keep ** (k[1:] + 1))
        return float(rate**2 * (parts**2 * squares).sum())
    first, second = (float(beta) for beta in group["betas"])
    parts = (1 - first) * first**k / (1 - first ** len(k))
    mean = float(((1 - second) * second**k * squares).sum() / (1 - second ** len(k)))
    size = float(e.numel[known].sum())
    if not np.sqrt(mean) > ABOVE_EPSILON * float(group.get("eps") or 1e-8) * np.sqrt(size):
        return 0.0
    moving = float((e.numel * np.where(np.isfinite(e.ever_nonzero), e.ever_nonzero, 1.0))[known].sum())
    return float(rate**2 * (parts**2 * squares).sum() / mean) * moving
