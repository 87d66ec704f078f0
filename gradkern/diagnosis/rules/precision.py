"""The rule for gradients that are too small for their number format.

May be wrong if gradients are small because the run has converged. Nothing is reported if the loss has fallen
far. An average over many ranks makes elements that float16 has not, so that a run under autocast then looks
as if its loss were scaled.
"""

from __future__ import annotations

import numpy as np

from gradkern._util.text import percent
from gradkern.diagnosis.case import Case, Floats
from gradkern.diagnosis.finding import Finding

#: The exponent of the smallest normal float16. Below it digits are lost, and below 2**-25 the whole value.
SMALLEST_EXPONENT = -14
#: Below 2**-20 a float16 has fewer than five of its eleven bits, below 2**-22 fewer than three. Measured
#: under autocast: with 16-38 % of the elements below 2**-22, 3-10 % are lost and runs learn; with 77 % a
#: quarter is lost.
COARSE_EXPONENT, LOST_EXPONENT = -20, -22
#: The smallest float16. If this part of the elements is smaller, they were divided by a loss scale: at a
#: median of 2**-20 and a scale of 2**16, 3 % of a normal distribution are.
LEAST_EXPONENT, SCALED = -24, 0.01
#: Part and number of the elements from it to COARSE_EXPONENT that show float16, if none is smaller: of a
#: density that is smooth around zero every sixteenth would be.
CUT, LEAST_CUT = 0.2, 300
#: Part of the elements below it. Measured: at least 0.9 in runs that stall, below 0.3 in those that learn.
UNDERFLOWING = 0.5
#: Median magnitude of a normal distribution, relative to its rms.
MEDIAN_OF_RMS = 0.6745
#: A run has converged if its loss is below this part of its start.
CONVERGED = 0.2


def low_precision_underflow(case: Case) -> list[Finding]:
    """Most elements of float16 gradients, or of those that autocast computes in float16, are too small."""
    e = case.evidence
    converged = case.trend.known and case.trend.fall > 1 - CONVERGED
    if len(e.steps) < 5 or np.isfinite(e.loss_scale).any() or converged:
        return []
    return _float16_gradients(case) or _float16_backward(case)


def _float16_gradients(case: Case) -> list[Finding]:
    """More than half of the elements are below the smallest normal number."""
    e = case.evidence
    columns = _half_columns(case)
    if not len(columns) or e.numel[columns].sum() < e.numel.sum() / 2:
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
            f"{percent(total)} of the elements of float16 gradients are below 2^-14, where float16 loses "
            "precision and then rounds to zero. The loss is not scaled.",
            {"share_below_2^-14": total, "parameters": len(worst)},
            layers=case.names(worst.tolist()) if len(worst) < len(columns) else (),
        )
    ]


def _float16_backward(case: Case) -> list[Finding]:
    """float32 parameters under autocast whose gradients were float16 on the way and kept few bits.

    Dead units have zeros beside gradients of a normal size, an underflow beside the smallest there are.
    """
    e = case.evidence
    if not len(e.histogram_steps):
        return []
    columns = _from_float16(case)
    if not columns or _is_scaled(case, columns):
        return []
    lost = _lost_columns(case, columns)
    share = float(e.numel[lost].sum() / e.numel[columns].sum())
    if share <= UNDERFLOWING:
        return []
    return [
        case.finding(
            "low_precision_underflow",
            "warning" if case.trend.fell else "severe",
            f"Autocast computes gradients in float16. Those of {percent(share)} of the elements are zero or "
            "mostly below 2^-22, where float16 has one or two bits and then rounds to zero. The loss is not "
            "scaled.",
            {"share_below_2^-22": share, "parameters": len(lost)},
            layers=case.names(lost) if len(lost) < len(columns) else (),
        )
    ]


def _from_float16(case: Case) -> list[int]:
    """Columns whose gradients were float16 on the way. The graph tells; without it their elements do, if many
    are near the smallest float16 and none is smaller, as is the case for no other format."""
    e, graph = case.evidence, case.evidence.facts.get("graph") or {}
    used = [i for i in case.model.order if e.has_grad[:, i].any()]
    if graph.get("order"):
        stated = set(graph.get("float16", ()))
        return [i for i in used if e.names[i] in stated]
    counts = e.histogram[:, used].sum(axis=(0, 1))
    near = counts[(e.histogram_exponents >= LEAST_EXPONENT) & (e.histogram_exponents < COARSE_EXPONENT)].sum()
    cut = near >= max(CUT * counts.sum(), LEAST_CUT)
    below = counts[e.histogram_exponents < LEAST_EXPONENT].sum()
    plain = {"torch.float16", "torch.bfloat16"}.isdisjoint(e.facts.get("gradient_dtypes") or {})
    return used if cut and not below and plain else []


def _is_scaled(case: Case, columns: list[int]) -> bool:
    """Whether a loss scale was divided out before the gradients were recorded."""
    counts = case.evidence.histogram[:, columns].sum(axis=(0, 1))
    below = counts[case.evidence.histogram_exponents < LEAST_EXPONENT].sum()
    return bool(below > SCALED * counts.sum())


def _lost_columns(case: Case, columns: list[int]) -> list[int]:
    """Columns in which most elements keep at most two significant bits, or are zero next to such elements. A
    column most of whose elements are zero at all steps is lost if the next module towards the loss keeps few
    bits."""
    e = case.evidence
    counts = e.histogram[:, columns].sum(axis=0)
    total = counts.sum(axis=1)
    below = [counts[:, e.histogram_exponents < k].sum(axis=1) for k in (COARSE_EXPONENT, LOST_EXPONENT)]
    ever = np.nan_to_num(e.ever_nonzero[columns], nan=1.0)  # zeros are in no histogram
    remaining = ever * (1 - below[1] / np.maximum(total, 1))
    coarse = below[0] > total / 2
    gone = coarse & (remaining < 1 - UNDERFLOWING)
    modules = [e.names[column].rpartition(".")[0] for column in columns]
    few_bits = {module for module, one in zip(modules, coarse) if one}
    known = np.flatnonzero(total > 0)
    after = modules[known[-1]] in few_bits if len(known) else _ends_ungated(case)
    lost = []
    for at in reversed(range(len(columns))):
        empty = not total[at] or ever[at] < UNDERFLOWING  # a later, larger gradient may fill a few elements
        if gone[at] or (after and empty):
            lost.append(columns[at])
        after = modules[at] in few_bits or (after and empty)
    return lost


def _ends_ungated(case: Case) -> bool:
    """Whether zeros everywhere cannot come from inactive units: a bias of the outputs always has a gradient,
    unless the loss is zero."""
    loss = case.evidence.loss[np.isfinite(case.evidence.loss)]
    if not len(loss) or not np.median(np.abs(loss)):
        return False
    layers = case.model.layers
    return not case.model.gates or bool(layers and layers[-1].bias is not None)


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
