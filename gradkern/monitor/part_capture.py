"""`PartCapture`: the periodic statistics of one model."""

from __future__ import annotations

from collections.abc import Callable

from gradkern.monitor.capture import Capture
from gradkern.monitor.looks import GradientLooks
from gradkern.monitor.numbering import StepNumbers
from gradkern.monitor.parts import Part
from gradkern.monitor.periodic import Periodic
from gradkern.monitor.transfer import PinnedPool
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
        numbers: StepNumbers,
        update_every: int,
        histogram_every: int | None,
        pool: PinnedPool,
        submit: Callable[[Capture], None],
    ) -> None:
        self.periodic = Periodic(part, numbers, update_every, pool, submit)
        self._looks = GradientLooks(part.plan, part.layouts, update_every, histogram_every, pool, submit)

    def recorded(self, step: int, stats: GradStats, collected: bool) -> None:
        """The statistics of a step were submitted; see `Periodic.recorded`."""
        if self._looks.due(step):
            self._looks.look(step, stats)
        self.periodic.recorded(stats, collected)
