"""The rule for gradients that are too small for their number format.

May be wrong if gradients are small because the run has converged. Nothing is reported if the loss has fallen
far.
"""

from __future__ import annotations

import numpy as np

from gradkern.diagnosis.case import Case, Floats
from gradkern.diagnosis.finding import Finding

#: The exponent of the smallest normal float16. Below it digits are lost, and below 2**-25 the whole value.
SMALLEST_EXPONENT = -14
#: Part of the elements below it. Measured: at least 0.9 in runs that stall, below 0.3 in those that learn.
UNDERFLOWING = 0.5
#: Median magnitude of a normal distribution, relative to its rms.
MEDIAN_OF_RMS = 0.6745
#: A run has converged if its loss is below this part of its start.
CONVERGED = 0.2


def low_precision_underflow(case: Case) -> list[Finding]:
    """float16 gradients, more than half of them below the smallest normal number."""
    e = case.evidence
    columns = _half_columns(case)
    if not len(columns) or e.numel[columns].sum() < e.numel.sum() / 2 or len(e.steps) < 5:
        return []
    if np.isfinite(e.loss_scale).any() or (case.trend.known and case.trend.fall > 1 - CONVERGED):
        return []
    share = _share_below(case, columns)
    total = (
        float(np.average(np.nan_to_num(share), weights=e.numel[columns])) if np.isfinite(share).any() else 0
    )
    if total <= UNDERFLOWING:
        return []
    worst = columns[np.nan_to_num(share) > UNDERFLOWING]
    return [
        case.finding(
            "low_precision_underflow",
            "warning" if case.trend.fell else "severe",
            f"{total:.0%} of the elements of float16 gradients are below 2^-14, where float16 loses "
            "precision and then rounds to zero. The loss is not scaled.",
            {"share_below_2^-14": total, "parameters": len(worst)},
            layers=case.names(worst.tolist()) if len(worst) < len(columns) else (),
        )
    ]


def _half_columns(case: Case) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    e = case.evidence
    stated = e.facts.get("gradient_dtypes") or {}
    names = next((v for k, v in stated.items() if "float16" in k and "bfloat16" not in k), ())
    if names == "all":
        return np.arange(len(e.names))
    half = {
        n for n in e.names if str(e.params.get(n, {}).get("dtype", "")).removeprefix("torch.") == "float16"
    }
    return np.array([i for i, n in enumerate(e.names) if n in half or n in names], dtype=np.int64)


def _share_below(case: Case, columns: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Floats:
    """[columns] part of the elements below the smallest normal number."""
    e = case.evidence
    if len(e.histogram_steps):
        counts = e.histogram[:, columns].sum(axis=0).astype(np.float64)
        below = counts[:, e.histogram_exponents < SMALLEST_EXPONENT].sum(axis=1)
        total = counts.sum(axis=1)
        dead = 1 - np.nan_to_num(e.ever_nonzero[columns], nan=1.0)  # zeros are in no histogram
        with np.errstate(invalid="ignore"):
            return np.where(total > 0, below / total * (1 - dead) + dead, 1.0)
    median = MEDIAN_OF_RMS * e.rms[:, columns]
    known = np.isfinite(median)
    return np.where(known.any(axis=0), ((median < 2.0**SMALLEST_EXPONENT) & known).mean(axis=0), np.nan)
