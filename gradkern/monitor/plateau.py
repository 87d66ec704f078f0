"""Norms of gradients that something else has clipped before they were measured."""

from __future__ import annotations

from collections import deque

import numpy as np

from gradkern.history.rows import StepRow

#: Recorded steps in a row at one value. Unclipped norms vary by more than this from step to step; bfloat16
#: gradients that were clipped to one norm agree within it.
_STEPS = 20
_TOLERANCE = 1e-4


class Plateau:
    """Notices a total norm that stays at one value while the gradients change. Used by the writing thread."""

    def __init__(self) -> None:
        self._last: StepRow | None = None
        self._count = 0
        self._told = False
        self._totals: deque[float] = deque(maxlen=_STEPS)

    def add(self, row: StepRow) -> str:
        """The next step; returns a warning, once, or ""."""
        last, self._last = self._last, row
        total = row.total_norm
        if last is None or row.phase == "after_clip" or not 0 < total < np.inf:
            self._count = 0
            return ""
        self._totals.append(total)
        stays = abs(last.total_norm - total) <= _TOLERANCE * total
        # Gradients that are the same at every step are no sign of clipping.
        changes = not (np.array_equal(last.max_abs, row.max_abs) and np.array_equal(last.norm, row.norm))
        self._count = self._count + 1 if stays and changes else 0
        if self._told or self._count < _STEPS - 1 or self._drifts():
            return ""
        self._told = True
        return (
            f"[GradMonitor] the total norm has been {total:.4g} for {_STEPS} recorded steps: something else "
            "has clipped the gradients before they were measured (a trainer's max_grad_norm, say). Measure "
            "before it clips, leave the clipping to GradClipper, or pass record(after_clip=True)"
        )

    def _drifts(self) -> bool:
        """Whether the norm only falls or only rises, as a slow training's own norm does."""
        moves = np.diff(np.asarray(self._totals))
        return bool((moves > 0).all() or (moves < 0).all())
