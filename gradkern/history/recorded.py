"""`Recorded`: the arrays of a run, one row per recorded step and one column per parameter."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradkern.history import format
from gradkern.history.columns import Columns
from gradkern.history.format import EXPONENTS, FORMATS
from gradkern.history.noted import Noted
from gradkern.history.reader import names_file

Floats = NDArray[np.floating[Any]]


class Recorded(Noted):
    """[T, N] arrays of statistics, and periodic statistics.

    The views of a history (summary, layers, export, words) take this; `History` adds them as methods.
    """

    def numel_rows(self, first: int = 0, end: int | None = None) -> NDArray[np.int64]:
        """Elements of each parameter in rows ``[first, end)``: [1, N], or [T, N] if one changed its size."""
        layouts = self._column("layout")[first:end]
        used = {int(n): self._layouts[int(n)] for n in np.unique(layouts)}
        if all(np.array_equal(self._numel[x.columns], x.numel) for x in used.values()):
            return self._numel[None]
        sizes = np.tile(self._numel, (len(layouts), 1))
        for number, layout in used.items():
            sizes[np.ix_(layouts == number, layout.columns)] = layout.numel
        return sizes

    # ---- per parameter and step ----

    @property
    def norm(self) -> Floats:
        """[T, N] norms of order `norm_type`; NaN where there was no gradient (`has_grad`) or it had NaN."""
        return self._matrix("norm")

    @property
    def l2_norm(self) -> Floats:
        """[T, N] L2 norms, whatever `norm_type` is."""
        return self._matrix("l2_norm")

    @property
    def rms(self) -> Floats:
        """[T, N] root mean square, ``l2_norm / sqrt(numel)``: comparable across sizes."""
        return self._matrix("rms")

    @property
    def max_abs(self) -> Floats:
        """[T, N] largest magnitudes."""
        return self._matrix("max_abs")

    @property
    def has_grad(self) -> NDArray[np.bool_]:
        """[T, N] whether the parameter existed and had a gradient."""
        return self._matrix("has_grad")

    @property
    def nonfinite(self) -> NDArray[np.int64]:
        """[T, N] number of elements that were inf or NaN."""
        return self._matrix("nonfinite")

    @property
    def zeros(self) -> NDArray[np.int64] | None:
        """[T, N] number of elements that were zero, -1 where not counted; None if never counted."""
        return self._matrix("zeros")

    @property
    def factor(self) -> Floats | None:
        """[T, N] factor that each gradient was multiplied by; None if it was always `clip_coef`."""
        factor = self._matrix("factor")
        return factor if factor is None else np.where(np.isnan(factor), self.clip_coef[:, None], factor)

    @names_file
    def window(self, first: int, end: int) -> Columns:
        """The [T, N] arrays of the rows ``[first, end)`` only, to save memory. Negative numbers count from
        the end."""
        first, end, _ = slice(first, end).indices(len(self))
        return self._read_columns(self._rows[first : max(first, end)], self.numel_rows(first, end))

    # ---- periodic ----

    @property
    def update_steps(self) -> NDArray[np.int64]:
        """[U] steps with weight norms and update ratios."""
        return self._weights()[0]

    @property
    def update_exact(self) -> NDArray[np.bool_]:
        """[U] whether the statistics are of all elements and not of a fixed sample."""
        return self._weights()[1]

    @property
    def weight_norm(self) -> Floats:
        """[U, N] L2 norm of each parameter before the step."""
        return self._weights()[2]

    @property
    def update_ratio(self) -> Floats:
        """[U, N] ‖Δw‖ / ‖w‖ of the optimizer step; NaN if unknown, inf if ‖w‖ was 0."""
        return self._weights()[3]

    @property
    def histogram_steps(self) -> NDArray[np.int64]:
        """[V] steps at which histograms were taken."""
        return self._histograms()[0]

    @property
    def histogram(self) -> NDArray[np.int64]:
        """[V, N, B] number of sampled elements in each bin of `histogram_exponents`."""
        return self._histograms()[1]

    @property
    def histogram_exponents(self) -> NDArray[np.int64]:
        """[B] bin b counts magnitudes in ``[2**e, 2**(e+1))``; the first also everything below except zero,
        the last everything above."""
        return np.array(EXPONENTS, dtype=np.int64)

    @property
    def underflow(self) -> dict[str, Floats]:
        """For "fp16", "bf16", "fp8_e4m3" and "fp8_e5m2": [V, N] fraction of the non-zero sampled elements
        that round to zero in that format."""
        fractions = self._histograms()[2]
        return {name: fractions[:, :, i] for i, name in enumerate(FORMATS)}

    # ---- reading ----

    def _matrix(self, name: str) -> NDArray[Any]:
        if "columns" not in self._cache:
            self._cache["columns"] = self.window(0, len(self))
        return getattr(self._cache["columns"], name)

    @names_file
    def _weights(self) -> tuple[NDArray[np.int64], NDArray[np.bool_], Floats, Floats]:
        if "weights" not in self._cache:
            ids, steps = self.live_rows("weights")
            exact = np.zeros(len(ids), dtype=bool)
            norms = np.full((len(ids), len(self.names)), np.nan, dtype=np.float32)
            ratios = norms.copy()
            found = self.read_rows("weights", "exact, weight_norm, ratio", ids)
            for i, (layout, every, norm, ratio) in enumerate(found):
                exact[i], columns = bool(every), layout.columns
                norms[i, columns] = format.decode(norm, len(columns), "weights")
                ratios[i, columns] = format.decode(ratio, len(columns), "weights")
            self._cache["weights"] = (steps, exact, norms, ratios)
        return self._cache["weights"]

    @names_file
    def _histograms(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
        if "histograms" not in self._cache:
            ids, steps = self.live_rows("hists")
            width = len(self.names)
            counts = np.zeros((len(ids), width, len(EXPONENTS)), dtype=np.int64)
            underflow = np.full((len(ids), width, len(FORMATS)), np.nan, dtype=np.float32)
            found = self.read_rows("hists", "counts, underflow", ids)
            for i, (layout, blob, fractions) in enumerate(found):
                columns = layout.columns
                flat = format.decode_counts(blob, len(columns) * len(EXPONENTS), "hists")
                counts[i, columns] = flat.reshape(len(columns), len(EXPONENTS))
                flat_fractions = format.decode(fractions, len(columns) * len(FORMATS), "hists")
                underflow[i, columns] = flat_fractions.reshape(len(columns), len(FORMATS))
            self._cache["histograms"] = (steps, counts, underflow)
        return self._cache["histograms"]
