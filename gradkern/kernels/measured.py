"""`Measured`: the result of one read of a list of gradients, on every route."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Measured:
    """Tensors are on the gradients' device. Norms are float32, or float64 if any gradient is float64 or
    complex128."""

    norm: Tensor
    """[N]: norm of order `norm_type` of each gradient."""
    l2_norm: Tensor
    """[N]: L2 norm of each gradient."""
    max_abs: Tensor
    """[N]: largest magnitude of each gradient."""
    nonfinite: Tensor
    """int64 [N]: number of elements that are inf or NaN."""
    zeros: Tensor | None
    """int64 [N]: number of elements that are zero; None if they were not counted."""
    total_norm: Tensor
    """0-d: norm of order `norm_type` of all gradients together."""
    has_grad: tuple[bool, ...]
    decision_norm: Tensor | None = None
    """0-d float64: `total_norm` if that is finite, else the norm before rounding. None if the extension
    measured and decided in one call."""
    nonfinite_total: Tensor | None = None
    """0-d: number of elements that are inf or NaN on all ranks; None means the sum of `nonfinite`."""
    wide_norm: Tensor | None = None
    """float64 [N]: `norm` before rounding, if a policy decides by rows."""
    group_norm: Tensor | None = None
    """float64 [G]: norm of order `norm_type` of each named group."""
    numel: tuple[int, ...] | None = None
    """Elements of each parameter, if the route found them."""
    clip_coef: Tensor | None = None
    """0-d: the factor of a clip in one call."""
    skip_step: Tensor | None = None
    """0-d bool: whether a clip in one call asks to skip the step."""

    def bad(self) -> Tensor:
        """0-d bool: whether any gradient on any rank has an inf or NaN."""
        total = self.nonfinite.sum() if self.nonfinite_total is None else self.nonfinite_total
        return total > 0

    def deciding(self) -> Tensor:
        """`decision_norm`, which is not None."""
        assert self.decision_norm is not None
        return self.decision_norm


def decision_norm(total: Tensor, rounded: Tensor) -> Tensor:
    """The norm that decisions use, 0-d float64 (csrc/core/clip.h): the rounded norm if it is finite, so that
    the split functions give the same bits as `clip_grad_norm_`; else the norm before rounding."""
    return rounded.to(total.dtype).where(rounded.isfinite(), total)
