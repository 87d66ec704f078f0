"""Periodic statistics: weight norms and update ratios around an optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from gradkern.monitor.capture import WeightsCapture
from gradkern.monitor.layouts import Layouts
from gradkern.monitor.looks import is_look
from gradkern.monitor.mistakes import Mistakes
from gradkern.monitor.sample import Part
from gradkern.monitor.transfer import PinnedPool
from gradkern.monitor.updates import UpdateTracker
from gradkern.params import steps
from gradkern.params.plan import ParameterPlan
from gradkern.params.stats import GradStats


class Periodic:
    """Weight norms and update ratios of a monitor.

    `record` comes before the optimizers' step that it is of, or within it (in a closure, or in a hook of
    the optimizer). What the weights change by in a step has the number of that call. A step without one
    is not looked at.

    Args:
        optimizers: whose steps change the weights.
        update_every: 0 for never.
        submit: takes what was captured.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        plan: ParameterPlan,
        layouts: Layouts,
        update_every: int,
        pool: PinnedPool,
        submit: Callable[[WeightsCapture], None],
    ) -> None:
        self._plan, self._layouts, self._pool, self._submit = plan, layouts, pool, submit
        self._update_every = update_every
        self.step = 0
        """The last one that `record` was called for."""
        self._recorded = False
        """Whether `record` was called since the optimizers have stepped."""
        self._optimizers = tuple(optimizers)
        self._stepped: set[int] = set()
        self._tracker = UpdateTracker(plan.current)
        self._tracking = False
        """Whether the weights before a step are held."""
        self._changed: list[Part] | None = None
        self._mistakes = Mistakes(plan, self._optimizers)
        for optimizer in self._optimizers:
            steps.listen(optimizer, self)

    def resume(self, step: int) -> None:
        """Count on from a step, which may be an earlier one."""
        self.step = step
        self._recorded = False
        self._forget()

    def begin(self, step: int) -> None:
        """`record` is called for a step."""
        self._report()  # of several optimizers some have not stepped
        self.step = step

    def recorded(self, stats: GradStats | None, collected: bool = False) -> None:
        """What `record` captured is submitted; None where it left a step out.

        Args:
            collected: the statistics are those of an earlier clip: an optimizer may have stepped since.
        """
        self._recorded = True
        self._stepped.clear()
        if not collected:
            self._mistakes.recorded(stats, self._is_due(self.step))

    def close(self) -> None:
        """Submit what is held, and listen to no further step."""
        self._report()
        self.detach()

    def detach(self) -> None:
        """Listen to no further step."""
        for optimizer in self._optimizers:
            steps.unlisten(optimizer, self)
        self._forget()

    # ---- around a step ----

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the weights if the step that this is the first part of is due."""
        self._mistakes.stepping(optimizer)
        if self._stepped and self._recorded:
            return
        # Without a call of record so far, it may come within this step.
        self._tracking = self._is_due(self.step if self._recorded else self.step + 1)
        if self._tracking:
            self._tracker.before()

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Compare the weights, and submit once every optimizer has stepped."""
        due = self._is_due(self.step)
        self._mistakes.stepped(due)
        if not self._recorded:
            self._forget()
            return
        self._stepped.add(id(optimizer))
        if self._tracking and due:
            self._changed = self._tracker.after()
        if len(self._stepped) == len(self._optimizers):
            self._report()
            self._recorded = False

    def _is_due(self, step: int) -> bool:
        return is_look(step, self._update_every)

    def _report(self) -> None:
        if self._changed is not None:
            sample, layout = self._tracker.sample, self._layouts.own()
            self._submit(
                WeightsCapture(self.step, layout, sample.exact, sample.factors, self._changed, self._pool)
            )
            self._forget()

    def _forget(self) -> None:
        self._tracking, self._changed = False, None
        self._stepped.clear()
        self._tracker.forget()
