"""Handing verdicts to torch's fused optimizers, which read `optimizer.grad_scale` and `.found_inf`.

A fused step *divides* every gradient by `grad_scale` (and writes the quotient back) and leaves the
parameters alone where `found_inf` is 1. Both are for one step: what is left behind would divide later
gradients in silence.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class OptimizerHandover:
    """One clipper's verdict on the next step of an optimizer, beside those of its other clippers."""

    def __init__(self, optimizer: torch.optim.Optimizer, identities: Sequence[int]) -> None:
        """
        Args:
            optimizer: what steps; of a wrapper (Accelerate's), the optimizer within.
            identities: `id` of the clipper's parameters.
        """
        self.optimizer = optimizer
        self.check_fused("GradClipper")
        self._own = _Clipper(frozenset(identities))
        if optimizer not in _VERDICTS:
            _VERDICTS[optimizer] = _Verdicts(optimizer)
        self._verdicts = _VERDICTS[optimizer]

    def check_fused(self, operation: str) -> None:
        """
        Raises:
            ValueError: a group of the optimizer is not fused (any more: a loaded state says that too).
        """
        if not all(group.get("fused") for group in self.optimizer.param_groups):
            raise ValueError(
                f"[{operation}] optimizer: expected a fused optimizer, got {type(self.optimizer).__name__} "
                "without fused=True; construct it with fused=True, or leave `optimizer` out and skip the "
                "step yourself when stats.skip_step is true"
            )

    def retire_with(self, clipper: object) -> None:
        """When the clipper is gone, its verdict holds if no step has used it yet, until another clipper of
        its parameters has one. Keeps neither optimizer nor clipper alive."""
        weakref.finalize(clipper, setattr, self._own, "gone", True).atexit = False

    def clear(self) -> None:
        """Forget this clipper's verdict, if no step has used it."""
        if self._verdicts.pending.pop(self._own, None) is not None:
            self._verdicts.show(self.optimizer)

    def give(self, divisor: Tensor | None, found_inf: Tensor) -> None:
        """Hand over a verdict.

        Args:
            divisor: 0-d; None for 1, so that the step need not write gradients.
            found_inf: 0-d, non-zero to skip the step.
        """
        given = {"found_inf": found_inf.to(torch.float32)}
        if divisor is not None:
            given["grad_scale"] = divisor.to(torch.float32)
        self._verdicts.drop_replaced(self._own)
        self._verdicts.pending[self._own] = given
        self._verdicts.show(self.optimizer)


@dataclass(eq=False)
class _Clipper:
    """What outlives a clipper, as long as its verdict does."""

    identities: frozenset[int]
    gone: bool = False


class _Verdicts:
    """What the clippers of one optimizer say of its next step; a step uses all of it.

    One hook does for all clippers, for good: none can be removed while hooks run, and that may be when a
    clipper goes.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.pending: dict[_Clipper, dict[str, Tensor]] = {}
        self._shown: dict[str, Tensor] = {}
        optimizer.register_step_post_hook(self._after_step)

    def drop_replaced(self, newer: _Clipper) -> None:
        """Forget clippers that are gone, and whose parameters another one clips now."""
        for older in [c for c in self.pending if c.gone and not c.identities.isdisjoint(newer.identities)]:
            del self.pending[older]

    def show(self, optimizer: torch.optim.Optimizer) -> None:
        """Set on the optimizer what the verdicts come to: each of them can skip the step."""
        self._remove(optimizer)
        for verdict in self.pending.values():
            before = self._shown.get("found_inf")
            self._shown = {**self._shown, **verdict}
            if before is not None:
                latest = verdict["found_inf"]
                self._shown["found_inf"] = torch.maximum(latest, before.to(latest.device))
        for name, value in self._shown.items():
            setattr(optimizer, name, value)

    def _remove(self, optimizer: torch.optim.Optimizer) -> None:
        """What others put there is not ours to remove."""
        for name, value in self._shown.items():
            if getattr(optimizer, name, None) is value:
                delattr(optimizer, name)
        self._shown = {}

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.pending.clear()
        # A scaler's step sets a found_inf of its own, removes both itself, and fails where it cannot.
        used = getattr(optimizer, "found_inf", None)
        if used is None or used is self._shown.get("found_inf"):
            self._remove(optimizer)
        self._shown = {}


#: Shared by the clippers of an optimizer, which is not kept alive by it.
_VERDICTS: weakref.WeakKeyDictionary[torch.optim.Optimizer, _Verdicts] = weakref.WeakKeyDictionary()
