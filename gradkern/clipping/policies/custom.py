"""`custom`: a policy made of a function."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gradkern.clipping.policies.base import Policy
from gradkern.clipping.policies.decision import Decision
from gradkern.params.stats import GradStats


def custom(decide: Callable[[GradStats], Decision | Tensor | float]) -> Policy:
    """Make a policy of a function that is called with the statistics of each step.

    Args:
        decide: a function of `GradStats` that returns a `Decision` or only its factor: a number, or a 0-d or
            [N] tensor. Use tensor operations, so that it does not synchronise.

    Raises:
        TypeError: `decide` is not callable.
        ValueError: in `GradClipper.clip_`, if the factor has another shape.

    Example:
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
        if not isinstance(found, Decision):
            found = Decision(torch.as_tensor(found, dtype=torch.float64, device=stats.norm.device))
        shape = tuple(found.factor.shape)
        if shape not in ((), (len(stats),)):
            raise ValueError(
                f"[custom] decide: expected a factor of shape () or ({len(stats)},), got {shape}"
            )
        return found

    def __repr__(self) -> str:
        return f"custom({self._decide!r})"
