"""The optimizer of a clipper: given at construction, or the one that a GradScaler steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradkern.clipping import grad_scaler
from gradkern.clipping.checks import check_folded
from gradkern.clipping.fused_step import OptimizerHandover
from gradkern.params.arguments import unwrap_optimizer
from gradkern.params.plan import ParameterPlan

if TYPE_CHECKING:
    from torch.amp.grad_scaler import GradScaler


class SteppedOptimizer:
    """Checks of the optimizer, and the verdicts that it gets.

    Args:
        optimizer: the clipper's optimizer, checked, or None.
        clipper: the owner of the verdicts.
        plan: the clipper's parameters.
        fold: whether the optimizer applies the coefficient.

    Raises:
        ValueError: the optimizer is not fused, or with `fold` has other parameters than the clipper.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer | None, clipper: object, plan: ParameterPlan, fold: bool
    ) -> None:
        self._optimizer, self._plan, self._fold = optimizer, plan, fold
        self._checked: tuple[Any, Any] = (None, None)
        self.handover: OptimizerHandover | None = None
        if optimizer is not None:
            self._check_folded("GradClipper", optimizer)
            self.handover = OptimizerHandover(unwrap_optimizer(optimizer), clipper, plan.identities)

    @property
    def is_given(self) -> bool:
        """Whether the clipper was built with an optimizer."""
        return self._optimizer is not None

    def prepare(self) -> None:
        """Withdraw the last verdict and check the optimizer again, at the start of `clip_`.

        Raises:
            ValueError: the optimizer is no longer fused, or with `fold` it has other parameters.
        """
        if self.handover is not None:
            self.handover.clear()
            self.handover.check_fused("GradClipper.clip_")
            self._check_folded("GradClipper.clip_", self.handover.optimizer)

    def stepped(self, optimizer: torch.optim.Optimizer | None) -> torch.optim.Optimizer:
        """The optimizer that a scaler steps: the argument of `clip_`, or else the clipper's own.

        Raises:
            ValueError: neither is given, or they differ.
        """
        own = self._optimizer
        if optimizer is None and own is None:
            raise ValueError(
                "[GradClipper.clip_] optimizer: with scaler=, pass the optimizer that it steps as optimizer="
            )
        if (
            optimizer is not None
            and own is not None
            and unwrap_optimizer(optimizer) is not unwrap_optimizer(own)
        ):
            raise ValueError(
                "[GradClipper.clip_] optimizer: the clipper was built with another one; leave it out here"
            )
        return optimizer or own  # type: ignore[return-value]

    def begin_unscaling(
        self, params: Sequence[Tensor], scaler: GradScaler | None, optimizer: torch.optim.Optimizer | None
    ) -> float | Tensor | None:
        """`grad_scaler.begin`, or None without a scaler."""
        if scaler is None:
            return None
        return grad_scaler.begin(scaler, self.stepped(optimizer), params, self._plan.names)

    def _check_folded(self, operation: str, optimizer: torch.optim.Optimizer) -> None:
        """`check_folded`, if the clipper's parameters or the sizes of the optimizer's groups have changed."""
        if not self._fold:
            return
        names, sizes = self._plan.names, [len(group["params"]) for group in optimizer.param_groups]
        if self._checked[0] is not names or self._checked[1] != sizes:
            check_folded(operation, optimizer, self._plan)
            self._checked = names, sizes
