"""`ReportData`: a run reduced to what a report shows, independent of the length of the run."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradkern._util import moved
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
#: Events that are listed: the first and last of each kind, and the most of all kinds together.
EVENTS_OF_KIND, MOST_EVENTS = 20, 400
#: Groups or models that get a curve, and charts of the caller's own numbers.
MOST_GROUPS, MOST_OWN = 8, 12


@dataclass(frozen=True)
class Matrix:
    """A quantity of every parameter over bins of steps."""

    first: I64
    last: I64
    values: F32
    """[N, C]; NaN where nothing was recorded."""
    bad: NDArray[np.bool_]
    """[N, C]; whether the bin has an inf or NaN."""


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
    """Share of the steps that were clipped; NaN without clipping."""
    coef: F64
    """Smallest coefficient."""

    @classmethod
    def of(cls, steps: I64, coef: F64, clipped: NDArray[np.bool_]) -> Clipping:
        bins = Bins.of(steps, max(1, min(CURVE_BINS // 3, len(steps) // 20)))
        known = clipped | np.isfinite(coef)
        return cls(bins, bins.share(clipped, known), bins.spread(coef)[0])


@dataclass(frozen=True)
class ReportData:
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
    """"rms", and "ratio" if update ratios were recorded."""
    summary: dict[str, Any]
    """Numbers of the whole run."""
    max_norm: float | None = None
    ratio_note: str = ""
    histogram: Histogram | None = None
    findings: tuple[dict[str, Any], ...] = field(default=())
    """The findings of `diagnose` as JSON, the headline first."""
    events: tuple[Notice, ...] = ()
    """Events without findings: some of each kind, ordered by step."""
    happened: dict[str, int] = field(default_factory=dict)
    """How many events there were of each kind."""
    groups: dict[str, F64] = field(default_factory=dict)
    """The total norm of each group or model, for each bin."""
    own: dict[str, dict[str, F64]] = field(default_factory=dict)
    """Curves of the caller's own numbers, for each bin, by the title of their chart."""
    phase: str = "before clipping"
    """When the norms were measured, in words."""
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


#: A run as the functions of this package accept it: downsampled data, an open History, or the run's folder.
Source: TypeAlias = ReportData | History | str | os.PathLike[str]

if not TYPE_CHECKING:
    __getattr__ = moved.forward(__name__)  # names of 0.1
