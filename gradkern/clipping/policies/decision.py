"""`Decision`: the result of a policy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Decision:
    """How to clip the gradients of one step. Tensors are on the gradients' device."""

    factor: Tensor
    """The factor to multiply gradients by: 0-d for all of them, or [N] with one per row of the statistics.
    Gradients with a factor of 1 are not written."""
    skip: Tensor | None = None
    """0-d bool: whether the optimizer has to skip this step. None means no."""
    threshold: float | Tensor | None = None
    """The norm above which the policy clips: a number, or a 0-d or [N] tensor. Recorded, not used."""
