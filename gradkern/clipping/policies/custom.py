"""`custom`: a policy made of a function."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gradkern.clipping.policies.base import Policy
from gradkern.clipping.policies.decision import Decision
from gradkern.params.stats import GradStats


def custom(decide: Callable[[GradStats], Decision | Tensor | float]) -> Policy:
    """Make a policy of a function that is called with the statistics of each step.

    Args:
        decide: a function of `GradStats` that returns a `Decision` or only its factor: a number, or a 0-d or
            [N] tensor. Use tensor operations, so that it does not synchronise and can be captured in a CUDA
            graph; `stats.by_layer` is made of them, too. With `fold` it must return one factor for all
            gradients.

    Raises:
        TypeError: `decide` is not callable.
        TypeError, ValueError: in `GradClipper.clip_`, if it returns something else, a factor or threshold of
            another shape, or a negative factor. NaN and inf are no errors, and enter the gradients.

    Examples:
        >>> policy = custom(lambda stats: (0.1 / stats.rms.amax()).clamp(max=1.0))
    """
    if not callable(decide):
        raise TypeError(f"[custom] decide: expected a function of GradStats, got {type(decide).__name__}")
    return _Custom(decide)


class _Custom(Policy):
    may_skip = True
    needs_rows = True

    def __init__(self, decide: Callable[[GradStats], Decision | Tensor | float]) -> None:
        self._decide = decide

    def decide(self, stats: GradStats) -> Decision:
        found = self._decide(stats)
        return found if isinstance(found, Decision) else Decision(found)

    def __repr__(self) -> str:
        return f"custom({self._decide!r})"


_Custom.__name__ = "custom"  # in messages and in the record of a run
