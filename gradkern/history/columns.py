"""`Columns`: the per-parameter statistics of some steps, as [T, N] arrays."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradkern.history import format
from gradkern.history.layout import Floats, Layout


class Columns:
    """The per-parameter columns of T rows; [T, N] arrays as `History` has them.

    Args:
        rows: T.
        numel: [1, N] or [T, N] elements of each parameter.
    """

    def __init__(self, rows: int, numel: NDArray[np.int64]) -> None:
        self._shape = (rows, numel.shape[1])
        self.numel = numel
        self.norm: Floats = np.full(self._shape, np.nan, dtype=np.float32)
        self.max_abs: Floats = self.norm.copy()
        self.l2_norm: Floats = self.norm
        self.has_grad = np.zeros(self._shape, dtype=bool)
        self.nonfinite = np.zeros(self._shape, dtype=np.int64)
        self.zeros: NDArray[np.int64] | None = None
        self.factor: Floats | None = None

    @cached_property
    def rms(self) -> Floats:
        """Root mean square, ``l2_norm / sqrt(numel)``. Read it after the last `put`."""
        return self.l2_norm / np.sqrt(np.maximum(self.numel, 1)).astype(self.l2_norm.dtype)

    def put(self, at: NDArray[np.int64], layout: Layout, found: Sequence[tuple[Any, ...]]) -> None:
        """Fill in the rows `at` (ascending), which have the same layout, from rows of the file."""
        count = len(layout.names)
        where = self._where(at, layout)
        norm = _block([row[1] for row in found], count)
        self._widen(norm.dtype)
        with np.errstate(invalid="ignore"):
            absent = norm < 0  # -1: no gradient
        self.has_grad[where] = ~absent
        self.norm[where] = np.where(absent, np.nan, norm)
        self.max_abs[where] = np.where(absent, np.nan, _block([row[2] for row in found], count))
        self._put_l2(where, norm, absent, [row[3] for row in found], count)
        for row, values in zip(at.tolist(), found):
            what = f"row {values[0]}"
            if values[4] is not None:
                self.nonfinite[row, layout.columns] = format.decode_counts(values[4], count, what)
            if values[5] is not None:
                self._put_zeros(row, layout.columns, format.decode_counts(values[5], count, what))
            if values[6] is not None:
                self._put_factor(row, layout.columns, format.decode(values[6], count, what))

    def put_zeros(self, row: int, columns: NDArray[np.int64], zeros: NDArray[np.int64]) -> None:
        """Fill in periodic zero counts where the step itself has none."""
        missing = zeros >= 0 if self.zeros is None else (zeros >= 0) & (self.zeros[row, columns] < 0)
        self._put_zeros(row, columns[missing], zeros[missing])

    def _put_zeros(self, row: int, columns: NDArray[np.int64], zeros: NDArray[np.int64]) -> None:
        if self.zeros is None:
            self.zeros = np.full(self._shape, -1, dtype=np.int64)
        self.zeros[row, columns] = zeros

    def _put_factor(self, row: int, columns: NDArray[np.int64], factor: Floats) -> None:
        if self.factor is None:
            self.factor = np.full(self._shape, np.nan, dtype=np.float32)
        self.factor[row, columns] = factor

    def _where(self, at: NDArray[np.int64], layout: Layout) -> Any:
        """An index for a block of rows and columns: slices where possible, which is much faster."""
        plain = np.array_equal(layout.columns, np.arange(len(layout.columns)))
        if plain and len(at) and at[-1] - at[0] + 1 == len(at):
            return slice(int(at[0]), int(at[-1]) + 1), slice(0, len(layout.columns))
        return np.ix_(at, layout.columns)

    def _put_l2(
        self, where: Any, norm: Floats, absent: NDArray[np.bool_], blobs: list[Any], count: int
    ) -> None:
        if self.l2_norm is self.norm:
            if all(blob is None for blob in blobs):
                return
            self.l2_norm = self.norm.copy()
        rows = [n if blob is None else format.decode(blob, count, "l2_norm") for n, blob in zip(norm, blobs)]
        self.l2_norm[where] = np.where(absent, np.nan, np.stack(rows))

    def _widen(self, dtype: np.dtype[Any]) -> None:
        if dtype.itemsize == 8 and self.norm.dtype.itemsize == 4:
            same = self.l2_norm is self.norm
            self.norm, self.max_abs = self.norm.astype(np.float64), self.max_abs.astype(np.float64)
            self.l2_norm = self.norm if same else self.l2_norm.astype(np.float64)


def _block(blobs: list[Any], count: int) -> Floats:
    """[rows, count] from blobs, decoded at once if all have the same size."""
    if all(isinstance(blob, bytes) and len(blob) == 4 * count for blob in blobs):
        return np.frombuffer(b"".join(blobs), dtype="<f4").reshape(len(blobs), count)
    return np.stack([format.decode(blob, count, "vals") for blob in blobs])
