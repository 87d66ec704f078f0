"""Periodic statistics: weight norms and update ratios around an optimizer step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from gradkern.monitor.capture import WeightsCapture
from gradkern.monitor.hooks import take_off
from gradkern.monitor.layouts import Layouts
from gradkern.monitor.looks import is_look
from gradkern.monitor.sample import Part, Sample
from gradkern.monitor.step_order import StepOrder
from gradkern.monitor.transfer import PinnedPool
from gradkern.monitor.updates import UpdateTracker
from gradkern.params.plan import ParameterPlan


@dataclass
class _Held:
    """Weights looked at around a step whose number is not known yet."""

    capture: WeightsCapture
    before: int | None
    """Its number if `record` comes before the optimizer's step; None if it was not called since the last."""
    after: int | None = None
    """Its number if `record` comes after; known with the next call."""


class Occasional:
    """Weight norms and update ratios of a monitor.

    Args:
        submit: takes what was captured.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None,
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
        self._since = 1
        """Steps of the optimizer since the last `record`; not 0 before the first."""
        self._order = StepOrder()
        self._held: list[_Held] = []
        self._tracker: UpdateTracker | None = None
        if optimizer is not None and update_every:
            self._tracker = UpdateTracker(optimizer, plan.current, self._due, self._add_weights)
            self._post_hook = optimizer.register_step_post_hook(self._stepped)
        self._undecided = self._tracker is not None
        """Whether it is not known yet if `record` comes before the optimizer's step."""

    def go_on(self, step: int) -> None:
        """Count on from a step, which may be an earlier one."""
        self.step = step
        self._since = 0 if self._order.records_first is False else 1
        self._held.clear()

    def recorded(self) -> None:
        """`record` was called for `step`, and what it captured is submitted."""
        since, self._since = self._since, 0
        if not (self._undecided or self._held):
            return
        if self._held and self._held[-1].after is None:
            held = self._held[-1]
            # Of several steps since the last record it is the first one, with the number expected then.
            alone = self._undecided or since == 1
            held.after = self.step if alone else min(held.capture.step, self.step)
        if self._undecided and self._order.recorded(self._plan.current()):
            self._decided()
        elif self._order.records_first is False:
            self._release(False)

    def detach(self) -> None:
        """Take the hooks off."""
        if self._tracker is not None:
            self._tracker.remove()
            take_off([self._post_hook])

    def close(self) -> None:
        """Take the hooks off, and let go of what is held."""
        self.detach()
        if self._undecided:
            self._release(self._order.guess())

    def _is_due(self, step: int) -> bool:
        return is_look(step, self._update_every)

    def _due(self) -> bool:
        if self._undecided and self._order.stepping(self._plan.current()):
            self._decided()
        since, self._since = self._since, self._since + 1
        first = self._order.records_first
        if first is None:
            return (not since and self._is_due(self.step)) or self._is_due(self.step + 1)
        # Not recorded since: an optimizer step that has no number of its own.
        return not since and self._is_due(self.step if first else self.step + 1)

    def _stepped(self, *_: object) -> None:
        if self._undecided:
            self._order.stepped(self._plan.current())

    def _decided(self) -> None:
        self._undecided = False
        self._release(self._order.records_first is True)

    def _add_weights(self, sample: Sample, parts: list[Part]) -> None:
        first = self._order.records_first
        number = self.step if first else self.step + 1
        capture = WeightsCapture(number, self._layouts.own(), sample.exact, sample.factors, parts, self._pool)
        if first:
            self._submit(capture)
            return
        # What has got no number, and is not the last step before the next record, gets none any more.
        self._held = [held for held in self._held if held.before is not None or held.after is not None]
        self._held.append(_Held(capture, self.step if self._since == 1 else None))

    def _release(self, first: bool) -> None:
        """What is held gets its number."""
        for held in self._held:
            number = held.before if first else held.after
            if number is not None and self._is_due(number):
                held.capture.step = number
                self._submit(held.capture)
        self._held = []
