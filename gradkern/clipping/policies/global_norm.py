"""`GlobalNorm`: one factor for all, from the norm of everything."""

from __future__ import annotations

import math

import torch

from gradkern.clipping.policies.base import Policy
from gradkern.clipping.policies.decision import Decision
from gradkern.clipping.policies.native import NativePolicy
from gradkern.kernels.scale import coefficient
from gradkern.params.arguments import as_limit
from gradkern.params.stats import GradStats


class GlobalNorm(Policy):
    """Scale all gradients by ``max_norm / (total_norm + 1e-6)`` where that is below 1.

    The policy of `torch.nn.utils.clip_grad_norm_` (Pascanu et al., "On the difficulty of training recurrent
    neural networks", 2013), and that of ``GradClipper(model, max_norm)``.

    Args:
        max_norm: largest norm to leave; `inf` only measures. Can be set between steps.
    """

    def __init__(self, max_norm: float = 1.0) -> None:
        self.max_norm = max_norm

    @property
    def max_norm(self) -> float:
        return self._max_norm

    @max_norm.setter
    def max_norm(self, value: float) -> None:
        self._max_norm: float = as_limit("GlobalNorm", "max_norm", value)

    def decide(self, stats: GradStats) -> Decision:
        norm = stats.deciding()
        if self._max_norm == math.inf:
            return Decision(torch.ones_like(norm))
        return Decision(coefficient(norm, self._max_norm), threshold=self._max_norm)

    def native(self, names: tuple[str, ...]) -> NativePolicy | None:
        return NativePolicy("global_norm", (self._max_norm,))

    def __repr__(self) -> str:
        return f"GlobalNorm({self._max_norm!r})"
