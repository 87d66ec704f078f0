"""`Decision`: what a policy wants done with the gradients, on their device."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Decision:
    """What is to be done with the gradients; tensors lie on their device."""

    factor: Tensor
    """What gradients are multiplied by: 0-d for all, or [N], one a row of the statistics. 1 leaves them as
    they are."""
    skip: Tensor | None = None
    """0-d bool: whether the optimizer is to skip this step. None: never."""
    threshold: float | Tensor | None = None
    """The norm above which the policy scales: a number, 0-d, or [N]. For the record only."""
