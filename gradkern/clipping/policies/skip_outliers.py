"""`SkipOutliers`: skip steps whose norm is far above the earlier ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from gradkern.clipping.policies.checks import Check, at_least, flag, whole
from gradkern.clipping.policies.decision import Decision
from gradkern.clipping.policies.stateful import StepPolicy
from gradkern.kernels.policy_steps import policy_step
from gradkern.params.arguments import as_limit
from gradkern.params.stats import GradStats


class SkipOutliers(StepPolicy):
    """Skip a step if its norm exceeds the mean of the latest norms by more than `sigma` standard deviations.

    The step is skipped as with ``on_nonfinite="skip"``: the clipper's fused optimizer skips it by itself;
    otherwise read ``stats.skip_step``. A GradScaler treats a skipped step like one with inf and lowers its
    scale.

    Source: the rule and the defaults of OLMo-core's `SkipStepOptimizer`. Differences: it compares the loss
    too, and also skips norms far below the mean. There every norm enters the window: a skipped one, which
    hides smaller ones after it, and NaN, after which all steps are skipped until it leaves. Here norms that
    are not finite never enter, and skipped norms only with `admit_outliers`. If all norms of the window are
    equal, an equal one is skipped there but not here.

    Args:
        sigma: the number of (unbiased) standard deviations.
        window: number of latest norms to compare with.
        min_steps: the first step that can be skipped, counted from 1. Default: half of `window`, at least 20.
        max_norm: a limit of the total norm for the steps that are not skipped; `inf` for none.
        admit_outliers: whether skipped norms enter the window. Set it if the norm can rise suddenly and stay
            high; otherwise all steps after such a rise are skipped.

    Raises:
        TypeError, ValueError: an invalid argument.
    """

    kind = "skip_outliers"
    may_skip = True
    _checks: ClassVar[Mapping[str, Check]] = {
        "sigma": partial(at_least, low=0.0),
        "window": partial(whole, least=2),
        "min_steps": partial(whole, least=2),
        "max_norm": as_limit,
        "admit_outliers": flag,
    }

    def __init__(
        self,
        sigma: float = 6.0,
        window: int = 128,
        min_steps: int | None = None,
        max_norm: float = math.inf,
        *,
        admit_outliers: bool = False,
    ) -> None:
        self.sigma = sigma
        self.window = window
        self.min_steps = max(20, self.window // 2) if min_steps is None else min_steps
        self.max_norm = max_norm
        self.admit_outliers = admit_outliers

    def constants(self) -> tuple[float, ...]:
        return self.sigma, self.window, self.min_steps, float(self.admit_outliers), self.max_norm

    def state_size(self, rows: int) -> int:
        return 1 + self.window

    def decide(self, stats: GradStats) -> Decision:
        total = stats.deciding()
        result = policy_step(self.kind, total, self._state_of(1, total.device), self.constants())
        factor, skip, threshold = result.unbind()
        return Decision(factor, skip > 0, threshold)
