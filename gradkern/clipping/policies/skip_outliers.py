"""`SkipOutliers`: steps whose norm is far above those before are skipped."""

from __future__ import annotations

import math

from gradkern.clipping.policies.checks import at_least
from gradkern.clipping.policies.decision import Decision
from gradkern.clipping.policies.stateful import StepPolicy
from gradkern.kernels.policy_steps import policy_step
from gradkern.params.arguments import as_limit
from gradkern.params.stats import GradStats


class SkipOutliers(StepPolicy):
    """Skip the step where the norm is above the mean plus `sigma` standard deviations of the norms before it.

    The rule of OLMo-core's `SkipStepOptimizer`, for the gradient norm: a window of 128 steps, 6 unbiased
    standard deviations, from half a window on. Unlike there, a skipped norm does not enter the window unless
    `admit_outliers`, so that one spike does not make room for the next.

    The step is skipped as with ``on_nonfinite="skip"``: through `stats.skip_step`, or by a fused optimizer
    that the clipper was given. A GradScaler takes a skipped step for one with inf, and lowers its scale.

    Args:
        sigma: how many standard deviations above the mean are an outlier.
        window: how many of the latest norms are compared with.
        min_steps: the first step that can be skipped; default: half a window.
        max_norm: a limit besides, for the steps that are taken; `inf` for none.
        admit_outliers: whether skipped norms enter the window. Without it a level that rises at once and for
            good is skipped for good.
    """

    kind = "skip_outliers"
    may_skip = True

    def __init__(
        self,
        sigma: float = 6.0,
        window: int = 128,
        min_steps: int | None = None,
        max_norm: float = math.inf,
        *,
        admit_outliers: bool = False,
    ) -> None:
        self.sigma = at_least("SkipOutliers", "sigma", sigma, 0.0)
        self.window = int(at_least("SkipOutliers", "window", window, 2))
        least = max(2, self.window // 2) if min_steps is None else min_steps
        self.min_steps = int(at_least("SkipOutliers", "min_steps", least, 2))
        self.max_norm: float = as_limit("SkipOutliers", "max_norm", max_norm)
        self.admit_outliers = bool(admit_outliers)

    def constants(self) -> tuple[float, ...]:
        return self.sigma, self.window, self.min_steps, float(self.admit_outliers), self.max_norm

    def state_size(self, rows: int) -> int:
        return 1 + self.window

    def decide(self, stats: GradStats) -> Decision:
        total = stats.deciding()
        result = policy_step(self.kind, total, self._state_of(1, total.device), self.constants())
        factor, skip, threshold = result.unbind()
        return Decision(factor, skip > 0, threshold)
