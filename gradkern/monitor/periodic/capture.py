"""Captures of periodic statistics: weights, histograms and zeros of gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradkern.history.format import EXPONENTS, FORMATS
from gradkern.history.layout import Layout
from gradkern.history.rows import HistogramRow, WeightsRow, ZerosRow
from gradkern.monitor.captures.capture import Presence
from gradkern.monitor.captures.transfer import PinnedPool, send
from gradkern.monitor.sample import DeviceColumns


class _PeriodicCapture:
    """Columns that lie on one or more devices, each for some of the parameters."""

    columns: tuple[tuple[int, Any, Any], ...]
    """(entries a parameter, dtype, fill value) of each column."""
    is_step = False

    def __init__(self, step: int, layout: Layout, found: list[DeviceColumns], pool: PinnedPool) -> None:
        self.step, self.layout = step, layout
        self._rows = [rows for rows, _ in found]
        self.arriving = send([tensor for _, tensors in found for tensor in tensors], pool)

    def nbytes(self) -> int:
        return sum(8 * width for width, _, _ in self.columns) * len(self.layout.names) + 1024

    def gathered(self) -> list[NDArray[Any]]:
        """[N] or [N, entries] of each column; copies."""
        tensors = iter(self.arriving.tensors)
        shapes = [(len(self.layout.names), width)[: 1 + (width > 1)] for width, _, _ in self.columns]
        found = [np.full(shape, fill, dtype=kind) for shape, (_, kind, fill) in zip(shapes, self.columns)]
        for rows in self._rows:
            for column in found:
                column[rows] = next(tensors).numpy()
        return found


class WeightsCapture(_PeriodicCapture):
    """Weight norms and update ratios."""

    columns = ((1, np.float64, np.nan), (1, np.float32, np.nan))

    def __init__(
        self,
        step: int,
        layout: Layout,
        exact: bool,
        factors: list[float],
        found: list[DeviceColumns],
        pool: PinnedPool,
    ) -> None:
        super().__init__(step, layout, found, pool)
        self._exact, self._factors = exact, factors

    def row(self, presence: Presence) -> WeightsRow:
        norm, ratio = self.gathered()
        norm = (norm * self._factors).astype(np.float32)
        return WeightsRow(self.step, self.layout, self._exact, norm, ratio)


class HistogramCapture(_PeriodicCapture):
    """Histograms of gradients."""

    columns = ((len(EXPONENTS), np.int64, 0), (len(FORMATS), np.float32, np.nan))

    def row(self, presence: Presence) -> HistogramRow:
        return HistogramRow(self.step, self.layout, *self.gathered())


class ZerosCapture(_PeriodicCapture):
    """Zero counts, and fractions of elements whose gradient was ever non-zero."""

    columns = ((1, np.float32, np.nan), (1, np.int64, -1))

    def row(self, presence: Presence) -> ZerosRow:
        return ZerosRow(self.step, self.layout, *self.gathered())
