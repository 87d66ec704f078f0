"""Warnings about training loops that record the wrong gradients; each is given once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gradkern._util.warning import warn
from gradkern.monitor.checks.loss_scale import LossScale
from gradkern.monitor.checks.unowned import UnownedParameters
from gradkern.monitor.models.layouts import Plan
from gradkern.params.misuse import Misuse
from gradkern.params.stats import GradStats

#: Steps in a row with several calls of `record` each. A GradScaler that skips a step makes one of them.
_CROWDED = 3


class Mistakes:
    """Watches calls of `record` and steps of optimizers. Costs a microsecond each, and more at steps with
    periodic statistics."""

    def __init__(self, plan: Plan, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._plan = plan
        self._misuse = Misuse("GradMonitor.record", "record")
        self._records, self._crowded = 0, 0
        self._scale = LossScale()
        self._unowned = UnownedParameters(plan, optimizers)

    def recorded(self, stats: GradStats | None, due: bool) -> None:
        """`record` was called.

        Args:
            stats: None if the step is left out.
            due: whether periodic statistics are due at the next step.
        """
        self._records += 1
        params = self._plan.params
        self._misuse.check_used(params)
        if stats is None:
            return
        if stats.clip_coef is None:  # else clip_ has warned
            self._misuse.check_present(params, stats.has_grad)
        if due:
            self._scale.recorded(params, stats)

    def stepping(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer is about to step."""
        self._scale.stepping(optimizer)

    def stepped(self, due: bool) -> None:
        """An optimizer has stepped."""
        if self._records:
            self._crowded = self._crowded + 1 if self._records > 1 else 0
            self._records = 0
            if self._crowded == _CROWDED:
                warn(
                    "[GradMonitor.record] called several times for each step of the optimizer, so that "
                    "micro-batches are counted as steps. Call it once a step, after backward() of the last "
                    "micro-batch and before optimizer.step()"
                )
        if due:
            self._unowned.check()
