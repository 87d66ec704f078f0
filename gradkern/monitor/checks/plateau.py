"""`Plateau`: a warning about gradients that other code has clipped before they were measured."""

from __future__ import annotations

from collections import deque

import numpy as np

from gradkern.history.rows import StepRow

#: Recorded steps in a row at one value. Unclipped norms vary by more than this from step to step; float32
#: gradients that were clipped to one norm agree within it.
_STEPS = 20
_TOLERANCE = 1e-4

#: With 16-bit gradients torch rounds the norm, the factor and the product. Measured with two layers of 4 to
#: 256 units: 20 clipped norms lay within 1.4e-2 of one another, their mean within 1.4e-3 of the threshold.
#: Their standard deviation was at most 0.15 of that of the layers' norms; without clipping at least 0.8.
_NARROW = ("bfloat16", "float16")
_BAND, _OFF, _RATIO = 2e-2, 4e-3, 0.3
#: Common thresholds, by their leading digits. There is no warning for norms close to another number.
_THRESHOLDS = np.array([1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 7.5, 8, 9, 10])


class Plateau:
    """Notices a total norm that stays at one value while the gradients change. Used by the writing thread."""

    def __init__(self) -> None:
        self._last: StepRow | None = None
        self._count = 0
        self._told = False
        self._totals: deque[float] = deque(maxlen=_STEPS)
        self._rows: deque[StepRow] = deque(maxlen=_STEPS)

    def add(self, row: StepRow) -> str:
        """The next step; returns a warning, once, or ""."""
        last, self._last = self._last, row
        total = row.total_norm
        if last is None or row.phase == "after_clip" or not 0 < total < np.inf:
            self._count = 0
            self._rows.clear()
            return ""
        self._totals.append(total)
        if last.layout is not row.layout:
            self._rows.clear()
        self._rows.append(row)
        stays = abs(last.total_norm - total) <= _TOLERANCE * total
        # Gradients that are the same at every step are no sign of clipping.
        changes = not (np.array_equal(last.max_abs, row.max_abs) and np.array_equal(last.norm, row.norm))
        self._count = self._count + 1 if stays and changes else 0
        exactly = self._count >= _STEPS - 1 and not self._drifts()
        if self._told or not (exactly or self._is_narrow_plateau()):
            return ""
        self._told = True
        value = f"{total:.4g}" if exactly else f"about {np.mean(self._totals):.2g}"
        return (
            f"[GradMonitor] the total norm has been {value} for {_STEPS} recorded steps: other code clips "
            "the gradients before they are measured (for example max_grad_norm of a trainer). Measure before "
            "it clips, let GradClipper clip instead, or pass record(after_clip=True)"
        )

    def _drifts(self) -> bool:
        """Whether the norm only falls or only rises, as a slow training's own norm does."""
        moves = np.diff(np.asarray(self._totals))
        return bool((moves > 0).all() or (moves < 0).all())

    def _is_narrow_plateau(self) -> bool:
        """Whether 16-bit gradients were clipped to a usual threshold: the totals hardly vary about it, while
        the norms of the layers do."""
        if len(self._rows) < _STEPS:
            return False
        totals = np.asarray(self._totals)
        mean = float(totals.mean())
        if np.ptp(totals) > _BAND * mean or not _is_usual(mean):
            return False
        dtypes = self._rows[-1].layout.details.get("dtype") or ()
        if not any(dtype in _NARROW for dtype in dtypes):
            return False
        norms = np.stack([row.norm for row in self._rows])
        norms = norms[:, ((norms > 0) & np.isfinite(norms)).all(axis=0)]
        if norms.shape[1] < 2:
            return False
        return bool(np.log(totals).std() <= _RATIO * np.median(np.log(norms).std(axis=0)))


def _is_usual(norm: float) -> bool:
    digits = norm / 10.0 ** np.floor(np.log10(norm))
    return bool((np.abs(_THRESHOLDS / digits - 1) <= _OFF).any())
