"""`GlobalNorm`: limit the norm of all gradients together."""

from __future__ import annotations

import math

from gradkern.clipping.policies.decision import Decision
from gradkern.clipping.policies.limit import LimitedPolicy
from gradkern.clipping.policies.native import NativePolicy
from gradkern.kernels.torch_scale import coefficient
from gradkern.params.stats import GradStats


class GlobalNorm(LimitedPolicy):
    """Scale all gradients by ``max_norm / (total_norm + 1e-6)`` if that is below 1.

    The policy of ``GradClipper(model, max_norm)``, with the formula of `torch.nn.utils.clip_grad_norm_`.
    Source: Pascanu et al., "On the difficulty of training recurrent neural networks", 2013.

    Args:
        max_norm: the largest norm allowed; `inf` only measures. It can be set between steps, and between
            replays of a CUDA graph.

    Raises:
        TypeError, ValueError: an invalid argument.
    """

    def __init__(self, max_norm: float = 1.0) -> None:
        super().__init__(max_norm)

    def decide(self, stats: GradStats) -> Decision:
        norm = stats.deciding()
        limited = coefficient(norm, self.limit_on(norm.device))
        return Decision(limited, threshold=None if self._max_norm == math.inf else self._max_norm)

    def native(self, names: tuple[str, ...]) -> NativePolicy | None:
        return NativePolicy("global_norm", (self._max_norm,))
