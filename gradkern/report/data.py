"""A run reduced to what a report shows. Its size does not grow with the length of the run."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradkern.diagnosis import Notice
from gradkern.history.facade import History
from gradkern.report.bins import F64, I64, Bins

F32 = NDArray[np.float32]

#: Bins of a curve over steps, at most.
CURVE_BINS = 1200
#: Cells of the heatmap and of the update ratios, at most: two bytes each, a third more as base64. Only the 16
#: columns that `columns_for` keeps for very many parameters can exceed it.
RMS_CELLS, RATIO_CELLS = 1_400_000, 350_000
#: Columns of a matrix, at most.
MOST_COLUMNS = 1000
#: Events that are listed: so many of each kind's first and last, and of all kinds together.
EVENTS_OF_KIND, MOST_EVENTS = 20, 400
#: Groups or models that get a curve.
MOST_GROUPS = 8


@dataclass(frozen=True)
class Matrix:
    """A quantity of every parameter over bins of steps."""

    first: I64
    last: I64
    values: F32
    """[N, C]; NaN where nothing was recorded."""
    bad: NDArray[np.bool_]
    """[N, C]; whether inf or NaN was met in the bin."""


@dataclass(frozen=True)
class Histogram:
    """Shares of the gradient's elements by magnitude: column i holds 2^(low+i) ≤ |g| < 2^(low+i+1)."""

    steps: I64
    low: int
    shares: F64
    underflow: dict[str, F64]
    note: str


@dataclass(frozen=True)
class Clipping:
    """How often and how strongly gradients were clipped, in bins of at least 20 records."""

    bins: Bins
    rate: F64
    """Share of the steps that were clipped; NaN where nothing was to be clipped."""
    coef: F64
    """Smallest coefficient."""

    @classmethod
    def of(cls, steps: I64, coef: F64, clipped: NDArray[np.bool_]) -> Clipping:
        bins = Bins.of(steps, max(1, min(CURVE_BINS // 3, len(steps) // 20)))
        known = clipped | np.isfinite(coef)
        return cls(bins, bins.share(clipped, known), bins.spread(coef)[0])


@dataclass(frozen=True)
class Run:
    """A run, downsampled."""

    title: str
    names: tuple[str, ...]
    numel: I64
    records: int
    bins: Bins
    series: dict[str, F64]
    """One number for each bin; see `_series` in load.py."""
    rates: Clipping
    matrices: dict[str, Matrix]
    """"rms" always, "ratio" where update ratios were recorded."""
    summary: dict[str, Any]
    """Numbers of the whole run."""
    max_norm: float | None = None
    ratio_note: str = ""
    histogram: Histogram | None = None
    findings: tuple[dict[str, Any], ...] = field(default=())
    """What `diagnose` says, as JSON; the headline first."""
    events: tuple[Notice, ...] = ()
    """What happened, findings left out: by step, some of each kind."""
    happened: dict[str, int] = field(default_factory=dict)
    """How many events there were of each kind."""
    groups: dict[str, F64] = field(default_factory=dict)
    """The total norm of each group or model, for each bin."""
    phase: str = "before clipping"
    """What the norms are of."""
    folder: str | None = None

    def ratio_bands(self) -> dict[str, F64] | None:
        """The 10th, 50th and 90th percentile and the maximum of update ratios, for each bin."""
        matrix = self.matrices.get("ratio")
        if matrix is None or not matrix.values.size:
            return None
        values = np.where(np.isfinite(matrix.values) & ~matrix.bad, matrix.values, np.nan).astype(np.float64)
        empty = np.isnan(values).all(axis=0)
        values[:, empty] = 0.0
        low, mid, high, top = np.nanquantile(values, [0.1, 0.5, 0.9, 1.0], axis=0)
        for band in (low, mid, high, top):
            band[empty] = math.nan
        return {"low": low, "mid": mid, "high": high, "top": top}


def columns_for(rows: int, cells: int = RMS_CELLS) -> int:
    """The number of columns for a matrix with so many rows: from 16 to 1000."""
    return max(16, min(MOST_COLUMNS, cells // max(1, rows)))


#: What the functions of this package take: a downsampled run, an open History, or the folder of a run.
Source: TypeAlias = Run | History | str | os.PathLike[str]
