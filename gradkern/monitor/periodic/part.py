"""`PartCapture`: the periodic statistics of one model."""

from __future__ import annotations

from collections.abc import Callable

from gradkern.monitor.captures.capture import Capture
from gradkern.monitor.captures.transfer import PinnedPool
from gradkern.monitor.models.parts import Part
from gradkern.monitor.periodic.gradients import PeriodicGradients
from gradkern.monitor.periodic.weights import PeriodicWeights
from gradkern.monitor.step_counter import StepCounter
from gradkern.params.stats import GradStats


class PartCapture:
    """Captures periodic statistics of the gradients and weights of a model.

    Args:
        update_every, histogram_every: arguments of `GradMonitor`.
        submit: takes the captures.
    """

    def __init__(
        self,
        part: Part,
        numbers: StepCounter,
        update_every: int,
        histogram_every: int | None,
        pool: PinnedPool,
        submit: Callable[[Capture], None],
    ) -> None:
        self.weights = PeriodicWeights(part, numbers, update_every, pool, submit)
        self._gradients = PeriodicGradients(
            part.plan, part.layouts, update_every, histogram_every, pool, submit
        )

    def recorded(self, step: int, stats: GradStats, collected: bool) -> None:
        """The statistics of a step were submitted; see `PeriodicWeights.recorded`."""
        if self._gradients.due(step):
            self._gradients.capture(step, stats)
        self.weights.recorded(stats, collected)
