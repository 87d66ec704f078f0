"""Pass verdicts to torch's fused optimizers, which read `optimizer.grad_scale` and `optimizer.found_inf`.

A fused step divides every gradient by `grad_scale`, writes the quotients back, and leaves the parameters
unchanged if `found_inf` is 1. Both attributes are removed after the step: a stale one would silently divide
later gradients or skip later steps.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class OptimizerHandover:
    """One clipper's verdicts on the next step of an optimizer. Keeps neither of the two alive.

    Args:
        optimizer: the optimizer that steps, not a wrapper.
        clipper: the owner of the verdicts.
        identities: `id` of the clipper's parameters.

    Raises:
        ValueError: the optimizer is not fused.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, clipper: object, identities: Sequence[int]) -> None:
        self.optimizer = optimizer
        self.check_fused("GradClipper")
        self._clipper, self._identities = weakref.ref(clipper), frozenset(identities)
        if optimizer not in _PENDING:
            _PENDING[optimizer] = _Pending(optimizer)
        self._pending = _PENDING[optimizer]

    def check_fused(self, operation: str) -> None:
        """Check again that the optimizer is fused, which loading a state can change.

        Raises:
            ValueError: a parameter group is not fused.
        """
        if not all(group.get("fused") for group in self.optimizer.param_groups):
            raise ValueError(
                f"[{operation}] optimizer: expected a fused optimizer, got {type(self.optimizer).__name__} "
                "without fused=True; construct it with fused=True, or leave `optimizer` out and skip the "
                "step yourself when stats.skip_step is true"
            )

    def clear(self) -> None:
        """Withdraw this clipper's verdict, if no step has used it."""
        self._pending.remove(self._clipper)

    def give(self, divisor: Tensor | None, found_inf: Tensor) -> None:
        """Set this clipper's verdict on the next step.

        Args:
            divisor: 0-d: what the optimizer divides gradients by. None means 1 and saves the write.
            found_inf: 0-d: non-zero to skip the step.
        """
        divisor = None if divisor is None else divisor.to(torch.float32)
        verdict = _Verdict(self._clipper, self._identities, divisor, found_inf.to(torch.float32))
        self._pending.add(verdict)


@dataclass(frozen=True, eq=False)
class _Verdict:
    clipper: weakref.ref[object]
    identities: frozenset[int]
    divisor: Tensor | None
    found_inf: Tensor

    def is_replaced_by(self, newer: _Verdict) -> bool:
        """A verdict outlives its clipper until the step, unless another clipper of its parameters has one."""
        if self.clipper is newer.clipper:
            return True
        return self.clipper() is None and not self.identities.isdisjoint(newer.identities)


class _Pending:
    """The verdicts of all clippers of one optimizer on its next step.

    The optimizer skips the step if any of them says so, and divides by the latest divisor. One hook serves
    all clippers. It stays registered, because torch cannot remove a hook while hooks run.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._verdicts: list[_Verdict] = []
        self._shown: dict[str, Tensor] = {}
        optimizer.register_step_post_hook(self._after_step)

    def add(self, verdict: _Verdict) -> None:
        self._show([*(v for v in self._verdicts if not v.is_replaced_by(verdict)), verdict])

    def remove(self, clipper: weakref.ref[object]) -> None:
        if any(v.clipper is clipper for v in self._verdicts):
            self._show([v for v in self._verdicts if v.clipper is not clipper])

    def _show(self, verdicts: list[_Verdict]) -> None:
        """Set the attributes of the optimizer according to all verdicts."""
        optimizer = self._optimizer()
        assert optimizer is not None
        self._withdraw(optimizer)
        self._verdicts = verdicts
        for verdict in verdicts:
            found, before = verdict.found_inf, self._shown.get("found_inf")
            self._shown["found_inf"] = (
                found if before is None else torch.maximum(found, before.to(found.device))
            )
            if verdict.divisor is not None:
                self._shown["grad_scale"] = verdict.divisor
        for name, value in self._shown.items():
            setattr(optimizer, name, value)

    def _withdraw(self, optimizer: torch.optim.Optimizer) -> None:
        """Remove the attributes, unless somebody else has set them since."""
        for name, value in self._shown.items():
            if getattr(optimizer, name, None) is value:
                delattr(optimizer, name)
        self._shown = {}

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._verdicts = []
        # GradScaler.step sets a found_inf of its own, and removes both attributes itself afterwards.
        used = getattr(optimizer, "found_inf", None)
        if used is None or used is self._shown.get("found_inf"):
            self._withdraw(optimizer)
        self._shown = {}


_PENDING: weakref.WeakKeyDictionary[torch.optim.Optimizer, _Pending] = weakref.WeakKeyDictionary()
