"""What is looked at every so often: weights around an optimizer step, histograms of gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradkern.monitor.capture import HistogramCapture, WeightsCapture
from gradkern.monitor.layouts import Layouts
from gradkern.monitor.sample import Part, Sample
from gradkern.monitor.transfer import PinnedPool
from gradkern.monitor.updates import UpdateTracker
from gradkern.plan import ParameterPlan
from gradkern.stats import GradStats


class StepOrder:
    """Finds out whether `record` comes before the optimizer's step or after it.

    A step before the first record says nothing: the loop may step first, or something before the loop
    has. The first step after the first record tells: are the gradients those that were recorded?
    """

    def __init__(self) -> None:
        self.records_first: bool | None = None
        self._recorded = self._stepped = False
        self._grad: Tensor | None = None
        self._version = 0

    def recorded(self, params: Sequence[Tensor]) -> None:
        """`record` was called."""
        if self.records_first is None:
            self._recorded = True
            self._grad = next((p.grad for p in params if p.grad is not None), None)
            self._version = _version(self._grad)

    def stepping(self, params: Sequence[Tensor]) -> bool:
        """The optimizer is about to step; returns whether that decided it."""
        if self.records_first is not None or not self._recorded:
            self._stepped = True
            return False
        grad = next((p.grad for p in params if p.grad is not None), None)
        same = grad is not None and grad is self._grad and _version(grad) == self._version
        self.records_first = same or not self._stepped
        self._grad = None
        return True


def _version(grad: Tensor | None) -> int:
    return -1 if grad is None or grad.is_inference() else grad._version


class Occasional:
    """Weight norms, update ratios and histograms of a monitor.

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
        submit: Callable[[WeightsCapture | HistogramCapture], None],
    ) -> None:
        self._plan, self._layouts, self._pool, self._submit = plan, layouts, pool, submit
        self._update_every = update_every
        self.step = 0
        """The last one that `record` was called for."""
        self._asked = -1
        """The step that the optimizer was in when it stepped last."""
        self._order = StepOrder()
        self._held: WeightsCapture | None = None
        self._sample: Sample | None = None
        self._sampled: tuple[str, ...] = ()
        self._tracker: UpdateTracker | None = None
        if optimizer is not None and update_every:
            self._tracker = UpdateTracker(optimizer, plan.current, self._due, self._add_weights)
        self.undecided = self._tracker is not None
        """Whether it is not known yet if `record` comes before the optimizer's step."""

    def go_on(self, step: int) -> None:
        """Count on from a step, which may be an earlier one."""
        self.step, self._asked = step, -1

    def recorded(self) -> None:
        """`record` was called for `step`; needed only while `undecided`."""
        self._order.recorded(self._plan.current())

    def detach(self) -> None:
        """Take the hooks off."""
        if self._tracker is not None:
            self._tracker.remove()

    def close(self) -> None:
        """Take the hooks off, and let go of what is held."""
        self.detach()
        self._release(self._order.records_first is None and self.step > 0)

    def _stepped(self) -> int:
        """The number of the step that the optimizer is in: `record` comes before or after it."""
        return self.step if self._order.records_first else self.step + 1

    def _due(self) -> bool:
        if self._order.records_first is None:
            if self._order.stepping(self._plan.current()):
                self.undecided = False
                self._release(not self._order.records_first)
            again = False
        else:  # not recorded since: an optimizer step that has no number of its own
            again = self._stepped() == self._asked
        self._asked = step = self._stepped()
        return not again and (step == 1 or step % self._update_every == 0)

    def _add_weights(self, sample: Sample, parts: list[Part]) -> None:
        layout = self._layouts.own()
        capture = WeightsCapture(self._stepped(), layout, sample.exact, sample.factors, parts, self._pool)
        if self._order.records_first is None:  # of a step of the loop, or of one before it: not yet known
            self._release(False)
            self._held = capture
        else:
            self._submit(capture)

    def _release(self, wanted: bool) -> None:
        held, self._held = self._held, None
        if held is not None and wanted:
            self._submit(held)

    def add_histogram(self, stats: GradStats) -> None:
        """Of the gradients as they are now, made what they were before clipping."""
        from gradkern.monitor.histogram import histogram

        params = self._plan.current()
        if self._sample is None or self._sampled is not self._plan.names:
            self._sample, self._sampled = Sample(params), self._plan.names
        coef, scale = (stats.clip_coef, 1.0) if stats.applied else (None, stats.inv_scale)
        parts = histogram([p.grad for p in params], self._sample, coef, scale)
        self._submit(HistogramCapture(self.step, self._layouts.own(), parts, self._pool))
