"""`GradClipper`: clipping for a training loop, with statistics and a policy for NaN and inf."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gradkern import _fallback
from gradkern._arguments import as_number
from gradkern._load import DISABLED, C
from gradkern.names import NamedParameters
from gradkern.plan import ParameterPlan
from gradkern.stats import GradStats

OnNonfinite = Literal["propagate", "raise", "zero", "skip"]


class GradClipper:
    """Clips gradients by their global norm and returns what one read of them tells.

    Args:
        params: a Module (looked at again when its parameters change), (name, Parameter) pairs, or
            Parameters.
        max_norm: largest norm to leave; `inf` only measures.
        norm_type: order of the norm that is clipped.
        on_nonfinite: what happens when a gradient holds inf or NaN (decided by the count of such
            elements, not by the norm, which can overflow for finite gradients):

            - "propagate": as torch: the norm is inf or NaN and the gradients become 0 or NaN.
            - "raise": RuntimeError that names the parameters; gradients are untouched. Synchronises.
            - "zero": all gradients become zero. An optimizer with momentum or weight decay still
              moves the parameters.
            - "skip": gradients are untouched and `stats.skip_step` is set on the device. With
              `optimizer` (a fused one), it skips the step itself, without a synchronisation;
              otherwise read ``stats.skip_step``.
        optimizer: a fused optimizer (``torch.optim.AdamW(..., fused=True)``) to be told to skip.

    Example:
        >>> clipper = GradClipper(model, max_norm=1.0)
        >>> loss.backward()
        >>> stats = clipper.clip_()
        >>> optimizer.step()

    Raises:
        TypeError, ValueError: bad arguments.
    """

    def __init__(
        self,
        params: NamedParameters,
        max_norm: float,
        *,
        norm_type: float = 2.0,
        on_nonfinite: OnNonfinite = "propagate",
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.max_norm = as_number("GradClipper", "max_norm", max_norm)
        self.norm_type = as_number("GradClipper", "norm_type", norm_type)
        if on_nonfinite not in get_args(OnNonfinite):
            policies = ", ".join(get_args(OnNonfinite))
            raise ValueError(f"[GradClipper] on_nonfinite: expected one of {policies}, got {on_nonfinite!r}")
        self.on_nonfinite: OnNonfinite = on_nonfinite
        self._plan = ParameterPlan("GradClipper", params)
        if not self._plan.params:
            raise ValueError("[GradClipper] params: expected at least one parameter, got none")
        self._optimizer = optimizer
        self._found_inf: Tensor | None = None
        if optimizer is not None:
            _require_fused(optimizer, on_nonfinite)
            optimizer.register_step_post_hook(self._forget_found_inf)

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical names of the parameters, in the order of the statistics' rows."""
        return self._plan.names

    def clip_(self) -> GradStats:
        """Clip the gradients in place.

        Returns:
            GradStats from before clipping, with `clip_coef` (and `skip_step` for "skip"); its
            tensors stay on the gradients' device.

        Raises:
            RuntimeError: on_nonfinite="raise", and a gradient holds inf or NaN; names the
                parameters. Gradients are unchanged.

        Notes:
            No host-device synchronisation, except for "raise".
        """
        params = self._plan.current()
        columns = None
        if not DISABLED:
            columns = C.clip(
                params, self.max_norm, self.norm_type, self.on_nonfinite, False, self._plan.names
            )
        if columns is None:
            columns = self._clip_with_torch(params)
        stats = GradStats(
            names=self._plan.names,
            numel=self._plan.numel,
            has_grad=tuple(columns.pop("has_grad")),
            norm_type=self.norm_type,
            first=self._plan.first,
            **columns,
        )
        if self._optimizer is not None and stats.skip_step is not None:
            self._found_inf = stats.skip_step.to(torch.float32)
            self._optimizer.found_inf = self._found_inf  # type: ignore[attr-defined]
        return stats

    def _forget_found_inf(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """One verdict is for one step: a stale one would skip steps in silence.

        GradScaler.step puts its own verdict there and takes it off itself: not ours to delete.
        """
        if self._found_inf is not None and getattr(optimizer, "found_inf", None) is self._found_inf:
            del optimizer.found_inf  # type: ignore[attr-defined]
        self._found_inf = None

    @torch.no_grad()
    def _clip_with_torch(self, params: list[Tensor]) -> dict[str, Any]:
        """The same by torch's own operations, for what has no kernel."""
        columns: dict[str, Any] = _fallback.measure(params, self.norm_type, False, 1.0)
        total = columns["total_norm"]
        coef = torch.ones_like(total)
        if self.max_norm != float("inf"):
            ratio = self.max_norm / (total + 1e-6)
            coef = torch.where(ratio >= 1, coef, ratio)
        bad = columns["nonfinite"].sum() > 0
        if self.on_nonfinite == "raise" and bool(bad):
            counts = columns["nonfinite"].tolist()
            names = [n for n, count in zip(self._plan.names, counts) if count]
            raise RuntimeError(
                f"[GradClipper.clip_] expected finite gradients, got inf or NaN in {names}. "
                "Gradients are unchanged."
            )
        if self.on_nonfinite == "skip":
            coef = torch.where(bad, torch.ones_like(coef), coef)
            columns["skip_step"] = bad
        zero = self.on_nonfinite == "zero"
        for grad in {id(p.grad): p.grad for p in params if p.grad is not None}.values():
            grad.mul_(coef.to(grad.device, grad.dtype.to_real()))
            if zero:
                grad.masked_fill_(bad.to(grad.device), 0)
        columns["clip_coef"] = torch.where(bad, torch.zeros_like(coef), coef) if zero else coef
        return columns


def _require_fused(optimizer: torch.optim.Optimizer, on_nonfinite: str) -> None:
    if on_nonfinite != "skip":
        raise ValueError(
            f"[GradClipper] optimizer: expected only with on_nonfinite='skip', got {on_nonfinite!r}"
        )
    if not all(group.get("fused") for group in optimizer.param_groups):
        raise ValueError(
            f"[GradClipper] optimizer: expected a fused optimizer, got {type(optimizer).__name__} without "
            "fused=True; construct it with fused=True, or leave `optimizer` out and skip the step "
            "yourself when stats.skip_step is true"
        )
