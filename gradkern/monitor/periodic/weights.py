"""Periodic statistics: weight norms and update ratios around an optimizer step."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gradkern.monitor.captures.transfer import PinnedPool
from gradkern.monitor.checks.mistakes import Mistakes
from gradkern.monitor.models.parts import Part
from gradkern.monitor.periodic.capture import WeightsCapture
from gradkern.monitor.periodic.schedule import is_due
from gradkern.monitor.periodic.updates import UpdateTracker
from gradkern.monitor.sample import DeviceColumns
from gradkern.monitor.step_counter import StepCounter
from gradkern.params import steps
from gradkern.params.stats import GradStats


class PeriodicWeights:
    """Weight norms and update ratios of a model.

    `record` is called before the optimizer step that it describes, or within it (in a closure or a hook of
    the optimizer). The change of the weights in a step gets the number of that call. Steps without a call are
    ignored.

    Args:
        part: the model, and the optimizers whose steps change it.
        numbers: of the run's steps.
        update_every: as in `GradMonitor`.
        submit: takes the captures.
    """

    def __init__(
        self,
        part: Part,
        numbers: StepCounter,
        update_every: int,
        pool: PinnedPool,
        submit: Callable[[WeightsCapture], None],
    ) -> None:
        self._part, self._numbers, self._pool, self._submit = part, numbers, pool, submit
        self._update_every = update_every
        self._step = 0
        """The last step that `record` was called for."""
        self._recorded = False
        """Whether `record` was called since the optimizers stepped."""
        self._stepped: set[int] = set()
        self._tracker = UpdateTracker(part.plan.current)
        self._tracking = False
        """Whether the weights before a step are held."""
        self._changed: list[DeviceColumns] | None = None
        self._mistakes = Mistakes(part.plan, part.optimizers)
        for optimizer in part.optimizers:
            steps.listen(optimizer, self)

    def resume(self, step: int) -> None:
        """Continue after a step, which may be an earlier one."""
        self._step = step
        self._recorded = False
        self._forget()

    def begin(self, step: int) -> None:
        """`record` is called for a step."""
        self._report()  # not every optimizer has stepped
        self._step = step

    def recorded(self, stats: GradStats | None, collected: bool = False) -> None:
        """`record` has submitted its statistics; None if it leaves this step out.

        Args:
            collected: they are those of an earlier clip: an optimizer may have stepped since.
        """
        self._recorded = True
        self._stepped.clear()
        if not collected:
            self._mistakes.recorded(stats, self._is_due(self._step))

    def close(self) -> None:
        """Submit what is held, and stop listening."""
        self._report()
        self.detach()

    def detach(self) -> None:
        """Stop listening to the optimizers."""
        for optimizer in self._part.optimizers:
            steps.unlisten(optimizer, self)
        self._forget()

    # ---- around a step ----

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer is about to step: take the weights if the step is due."""
        self._mistakes.stepping(optimizer)
        if self._stepped and self._recorded:
            return
        # Where record was not called yet, it may be called within this step.
        upcoming = self._step if self._recorded else self._numbers.upcoming(self._part.name)
        self._tracking = self._is_due(upcoming)
        if self._tracking:
            self._tracker.before()

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer has stepped: compare the weights, and submit once all have stepped."""
        due = self._is_due(self._step)
        self._mistakes.stepped(due)
        if not self._recorded:
            self._forget()
            return
        self._stepped.add(id(optimizer))
        if self._tracking and due:
            self._changed = self._tracker.after()
        if len(self._stepped) == len(self._part.optimizers):
            self._report()
            self._recorded = False

    def _is_due(self, step: int) -> bool:
        return is_due(step, self._update_every)

    def _report(self) -> None:
        if self._changed is not None:
            sample, layout = self._tracker.sample, self._part.layouts.own()
            self._submit(
                WeightsCapture(self._step, layout, sample.exact, sample.factors, self._changed, self._pool)
            )
            self._forget()

    def _forget(self) -> None:
        self._tracking, self._changed = False, None
        self._stepped.clear()
