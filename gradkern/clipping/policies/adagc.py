"""`AdaGC`: limit every gradient relative to the running mean of its own norm."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from gradkern.clipping.policies.checks import Check, at_least, whole, within
from gradkern.clipping.policies.decision import Decision
from gradkern.clipping.policies.stateful import StepPolicy
from gradkern.kernels.policy_steps import policy_step
from gradkern.params.stats import GradStats


class AdaGC(StepPolicy):
    """Limit the norm of each gradient to `lambda_rel` times the running mean of its own clipped norm.

    Source: Wang et al., "AdaGC: Improving training stability for large language model pretraining", 2025.

    During warm-up all gradients are clipped together to the global norm `lambda_abs`, and the mean of each
    gradient is its smallest clipped norm so far. Norms that are zero or not finite do not enter a mean. A
    zero would hold its gradient at zero after warm-up, as it does in the package pytorch_optimizer.

    Args:
        beta: weight of the past in the running means, from 0 to 1.
        lambda_abs: the largest global norm during warm-up, and afterwards the largest norm of a gradient that
            has no mean yet.
        lambda_rel: the largest ratio of a norm to its mean.
        warmup_steps: number of warm-up steps.

    Raises:
        TypeError, ValueError: an invalid argument.
    """

    kind = "adagc"
    needs_rows = True
    one_factor = False
    _checks: ClassVar[Mapping[str, Check]] = {
        "beta": partial(within, low=0.0, high=1.0),
        "lambda_abs": partial(at_least, low=0.0),
        "lambda_rel": partial(at_least, low=0.0),
        "warmup_steps": partial(whole, least=0),
    }

    def __init__(
        self,
        beta: float = 0.98,
        lambda_abs: float = 1.0,
        lambda_rel: float = 1.05,
        warmup_steps: int = 100,
    ) -> None:
        self.beta = beta
        self.lambda_abs = lambda_abs
        self.lambda_rel = lambda_rel
        self.warmup_steps = warmup_steps

    def constants(self) -> tuple[float, ...]:
        return self.beta, self.lambda_abs, self.lambda_rel, self.warmup_steps

    def state_size(self, rows: int) -> int:
        return 1 + rows

    def _fixed_size(self) -> int | None:
        return None

    def decide(self, stats: GradStats) -> Decision:
        total, rows = stats.deciding(), len(stats)
        state = self._state_of(rows, total.device)
        result = policy_step(self.kind, total, state, self.constants(), stats.deciding_rows())
        return Decision(result[:rows], threshold=result[rows : 2 * rows])
