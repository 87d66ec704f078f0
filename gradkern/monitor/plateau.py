"""Total norms that something else has clipped before they were measured."""

from __future__ import annotations

import numpy as np

from gradkern.history.rows import StepRow

#: Recorded steps in a row at one value. What is not clipped varies by more than this from step to step;
#: bfloat16 gradients that are clipped to one norm agree within it.
_STEPS = 20
_TOLERANCE = 1e-4


class Plateau:
    """Notices that the total stays at one value while the gradients change. On the writing thread."""

    def __init__(self) -> None:
        self._last: StepRow | None = None
        self._count = 0

    def add(self, row: StepRow) -> str:
        """What is to be warned of, "" for nothing."""
        last, self._last = self._last, row
        total = row.total_norm
        if last is None or row.phase == "after_clip" or not 0 < total < np.inf:
            self._count = 0
            return ""
        sits = abs(last.total_norm - total) <= _TOLERANCE * total
        # Gradients that are the same at every step are no sign of clipping.
        changes = not (np.array_equal(last.max_abs, row.max_abs) and np.array_equal(last.norm, row.norm))
        self._count = self._count + 1 if sits and changes else 0
        if self._count != _STEPS - 1:
            return ""
        return (
            f"[GradMonitor] the total norm sits at {total:.4g} for {_STEPS} recorded steps: something else "
            "has clipped the gradients before they were measured (a trainer's max_grad_norm, say). Measure "
            "before that, leave its clipping to GradClipper, or say record(after_clip=True)"
        )
