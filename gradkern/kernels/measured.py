"""`Measured`: what one read of a list of gradients gives, by whichever route it was read."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Measured:
    """Tensors on the gradients' device; norms are float32, or float64 if any gradient is float64 or
    complex128."""

    norm: Tensor
    """[N]: norm of order `norm_type` of each gradient."""
    l2_norm: Tensor
    """[N]."""
    max_abs: Tensor
    """[N]."""
    nonfinite: Tensor
    """int64 [N]: how many elements are inf or NaN."""
    zeros: Tensor | None
    """int64 [N], if they were counted."""
    total_norm: Tensor
    """0-d: norm of order `norm_type` of everything."""
    has_grad: tuple[bool, ...]
    decision_norm: Tensor | None = None
    """0-d float64: `total_norm` where its type holds it, else the norm before rounding to infinity. None
    where the one-call clip has decided already."""
    nonfinite_total: Tensor | None = None
    """0-d: how many elements are inf or NaN, over all ranks; None for the sum of `nonfinite`."""
    wide_norm: Tensor | None = None
    """float64 [N]: `norm` before rounding, where a policy decides by rows."""
    group_norm: Tensor | None = None
    """float64 [G]: norm of order `norm_type` of each named group."""
    numel: tuple[int, ...] | None = None
    """Elements of each parameter, where the route has looked."""
    clip_coef: Tensor | None = None
    """0-d: what the one-call clip multiplied by."""
    skip_step: Tensor | None = None
    """0-d bool: whether the one-call clip asks for the step to be skipped."""

    def bad(self) -> Tensor:
        """0-d bool: whether a gradient holds inf or NaN, on any rank."""
        total = self.nonfinite.sum() if self.nonfinite_total is None else self.nonfinite_total
        return total > 0

    def deciding(self) -> Tensor:
        """`decision_norm`, where it was measured."""
        assert self.decision_norm is not None
        return self.decision_norm


def decision_norm(total: Tensor, rounded: Tensor) -> Tensor:
    """0-d float64 (csrc/core/clip.h): the rounded norm where its type holds it, so that the split functions
    give the same bits as `clip_grad_norm_`; else the norm before rounding."""
    return rounded.to(total.dtype).where(rounded.isfinite(), total)
