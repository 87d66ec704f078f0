"""Handing verdicts to torch's fused optimizers, which read `optimizer.grad_scale` and `.found_inf`.

A fused step *divides* every gradient by `grad_scale` (and writes the quotient back) and leaves the
parameters alone where `found_inf` is 1. Both are for one step: what is left behind would divide later
gradients in silence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class OptimizerHandover:
    """Sets the two attributes, and removes them after the step or before the next verdict."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        if not all(group.get("fused") for group in optimizer.param_groups):
            raise ValueError(
                f"[GradClipper] optimizer: expected a fused optimizer, got {type(optimizer).__name__} "
                "without fused=True; construct it with fused=True, or leave `optimizer` out and skip the "
                "step yourself when stats.skip_step is true"
            )
        self.optimizer = optimizer
        self._given: dict[str, Tensor] = {}
        self._removed_by_scaler = False
        self._hook = optimizer.register_step_post_hook(self._after_step)

    def retire(self) -> None:
        """The clipper is gone. A verdict that no step has used yet still holds, and is cleared after it."""
        if not self._given:
            self._hook.remove()

    def clear(self) -> None:
        """Forget a verdict that no step has used. What others put there is not ours to remove."""
        for name, value in self._given.items():
            if getattr(self.optimizer, name, None) is value:
                delattr(self.optimizer, name)
        self._given = {}

    def give(self, divisor: Tensor | None, found_inf: Tensor, *, removed_by_scaler: bool = False) -> None:
        """Hand over a verdict.

        Args:
            divisor: 0-d; None for 1, so that the step need not write gradients.
            found_inf: 0-d, non-zero to skip the step.
            removed_by_scaler: `scaler.step` removes the attributes itself, and fails if it cannot.
        """
        self._given = {"found_inf": found_inf.to(torch.float32)}
        if divisor is not None:
            self._given["grad_scale"] = divisor.to(torch.float32)
        for name, value in self._given.items():
            setattr(self.optimizer, name, value)
        self._removed_by_scaler = removed_by_scaler

    def _after_step(self, *_: Any) -> None:
        if self._removed_by_scaler:
            self._given = {}
        else:
            self.clear()
