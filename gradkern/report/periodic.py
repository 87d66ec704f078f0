"""Periodic statistics of a run for the report: update ratios and histograms."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradkern.history import format
from gradkern.history.facade import History
from gradkern.history.format import EXPONENTS, FORMATS
from gradkern.report.bins import F64, Bins
from gradkern.report.data import RATIO_CELLS, Histogram, Matrix, columns_for

#: Steps whose histograms are shown, at most.
HISTOGRAMS = 100


def read_ratios(history: History) -> Matrix | None:
    """Mean update ratios of each bin; None if none were recorded."""
    ids, steps = history.live_rows("weights")
    if not ids:
        return None
    bins = Bins.of(steps, columns_for(len(history.names), RATIO_CELLS))
    values = np.full((len(history.names), len(bins)), np.nan, dtype=np.float32)
    for column, (start, end) in enumerate(zip(bins.edges[:-1], bins.edges[1:])):
        total, count = np.zeros(len(history.names)), np.zeros(len(history.names))
        for layout, blob in history.read_rows("weights", "ratio", ids[start:end]):
            at = layout.columns
            ratio = format.decode(blob, len(at), "weights").astype(np.float64)
            known = np.isfinite(ratio)  # NaN: unknown; inf: the weights were zero
            total[at] += np.where(known, ratio, 0.0)
            count[at] += known
        values[:, column] = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return Matrix(bins.first, bins.last, values, np.zeros(values.shape, dtype=bool))


def ratio_note(history: History) -> str:
    """A note on whether ratios are of all elements or of a sample."""
    exact = [row[0] for row in history.connection.execute("SELECT DISTINCT exact FROM weights").fetchall()]
    if not exact:
        return ""
    if all(exact):
        return "Computed from all elements."
    return "Computed from a fixed sample of the elements" + (" at some of the steps." if any(exact) else ".")


def read_histogram(history: History) -> Histogram | None:
    """Histograms of the whole model at up to `HISTOGRAMS` steps; None if none were recorded."""
    ids, steps = history.live_rows("hists")
    if not ids:
        return None
    chosen = np.unique(np.linspace(0, len(ids) - 1, HISTOGRAMS).astype(np.int64))
    counts = np.zeros((len(chosen), len(EXPONENTS)), dtype=np.float64)
    under = np.full((len(chosen), len(FORMATS)), np.nan)
    found = history.read_rows("hists", "counts, underflow", [ids[at] for at in chosen])
    for i, (layout, blob, fractions) in enumerate(found):
        counts[i], under[i] = _one_histogram(len(layout.columns), blob, fractions)
    low, high = _occupied(counts)
    total = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return Histogram(
        steps=steps[chosen],
        low=EXPONENTS[low],
        shares=(counts / total)[:, low:high],
        underflow={name: under[:, i] for i, name in enumerate(FORMATS)},
        note="Non-zero elements of a sample in which all parameters have the same weight. Elements to the "
        "left of a dashed line round to zero in that format.",
    )


def _one_histogram(rows: int, blob: Any, fractions: Any) -> tuple[F64, F64]:
    """Counts [B] and underflowing fractions [formats] of the whole model at one step."""
    flat = format.decode_counts(blob, rows * len(EXPONENTS), "hists").reshape(rows, len(EXPONENTS))
    part = format.decode(fractions, rows * len(FORMATS), "hists").reshape(rows, len(FORMATS))
    weight = flat.sum(axis=1, keepdims=True).astype(np.float64)
    known = np.isfinite(part) & (weight > 0)
    total = (known * weight).sum(axis=0)
    lost = np.where(known, part * weight, 0.0).sum(axis=0)
    return flat.sum(axis=0).astype(np.float64), np.divide(
        lost, total, out=np.full(len(total), np.nan), where=total > 0
    )


def _occupied(counts: F64) -> tuple[int, int]:
    """The range of columns with any count, and one more on either side."""
    used = np.flatnonzero(counts.any(axis=0))
    if not len(used):
        return 0, counts.shape[1]
    return max(0, int(used[0]) - 1), min(counts.shape[1], int(used[-1]) + 2)
