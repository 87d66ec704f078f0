"""`AllZero`: a warning about gradients that are exactly zero at every step."""

from __future__ import annotations

from gradkern.history.rows import StepRow

#: Recorded steps in a row. A single batch may have no gradient (every sample fits, a mask that leaves out
#: all); a run of them is a mistake.
_STEPS = 20


class AllZero:
    """Notices a run whose gradients are all zero. Used by the writing thread, where the values are known
    without a synchronisation."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, row: StepRow) -> str:
        """The next step; returns a warning, once in a run of such steps, or ""."""
        present = row.norm != -1
        self._count = self._count + 1 if present.any() and not row.max_abs[present].any() else 0
        if self._count != _STEPS:
            return ""
        return (
            f"[GradMonitor] all gradients have been exactly zero for {_STEPS} recorded steps. They were "
            "cleared before they were measured (zero_grad(set_to_none=False) belongs after step()), or the "
            "loss does not depend on the parameters"
        )
