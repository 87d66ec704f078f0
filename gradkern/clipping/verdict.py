"""From a decision to the gradients: the handling of inf and NaN, and scaling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from gradkern.clipping.policies import SettledDecision
from gradkern.clipping.route import written_shards
from gradkern.kernels.measured import Measured
from gradkern.kernels.scale import is_one, scale_


@dataclass(frozen=True)
class Verdict:
    """What to do with the gradients. Tensors are on their device."""

    factor: Tensor
    """0-d or [N]: the factor to multiply gradients by."""
    bad: Tensor
    """0-d bool: whether a gradient has inf or NaN."""
    zero: Tensor | None
    """0-d bool: whether to set all gradients to zero; None means never."""
    skip: Tensor | None
    """0-d bool: whether to skip the step; None means never."""


def judge(decision: SettledDecision, bad: Tensor, on_nonfinite: str) -> Verdict:
    """Apply `on_nonfinite` to a decision (`decide_clip` in csrc/core/clip.h)."""
    factor, skip = decision.factor, decision.skip
    if on_nonfinite == "skip":
        skip = bad if skip is None else bad | skip
    if skip is not None:  # gradients of a skipped step are not scaled
        factor = factor.masked_fill(skip, 1.0)
    if on_nonfinite != "zero":
        return Verdict(factor, bad, None, skip)
    return Verdict(factor.masked_fill(bad, 0.0), bad, bad, skip)


def smallest(factor: Tensor) -> Tensor:
    """The smallest factor, 0-d; NaN if one is NaN, 1 if there are none."""
    if factor.ndim == 0:
        return factor
    return factor.amin() if len(factor) else factor.new_ones(())


def raise_bad(measured: Measured, names: Sequence[str], operation: str) -> NoReturn:
    """on_nonfinite="raise", where a gradient is bad. All ranks raise together. Synchronises."""
    raise RuntimeError(
        f"[{operation}] expected finite gradients, got inf or NaN in: "
        f"{bad_parameters(measured.nonfinite, names)}. Gradients are unchanged."
    )


def bad_parameters(nonfinite: Tensor, names: Sequence[str]) -> str:
    """For a message: the parameters with inf or NaN and the number of such elements. Synchronises."""
    found = [f"'{n}' ({c} elements)" for n, c in zip(names, nonfinite.tolist()) if c]
    listed = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
    return listed or "parameters of other ranks only"


def apply(
    params: Sequence[Tensor],
    factor: Tensor,
    zero: Tensor | None,
    held: Sequence[Tensor | None] | None = None,
) -> None:
    """Scale the gradients.

    Args:
        factor: 0-d or [N].
        zero: 0-d bool: whether to set the gradients to zero instead.
        held: the tensor of each gradient that this rank holds, if known.
    """
    if zero is None and is_one(factor):
        return
    grads = [p.grad for p in params]
    scale_(grads, written_shards(grads) if held is None else held, factor, zero)


def split_for_fold(factor: Tensor) -> tuple[Tensor | None, Tensor]:
    """Split a factor between the optimizer and the scale kernel.

    torch's fused optimizers read the divisor as float32. If it is out of range (for norms beyond the largest
    float32), the gradients are scaled here instead and the divisor is 1.

    Returns:
        The optimizer's divisor, or None if it is known to be 1 without a synchronisation (on a CPU); and the
        factor to scale by here.
    """
    divisor = factor.reciprocal()
    limits = torch.finfo(torch.float32)
    representable = (divisor >= limits.smallest_normal) & (divisor <= limits.max)
    here = factor.masked_fill(representable, 1.0)
    divisor = divisor.masked_fill(~representable, 1.0)
    needless = divisor.is_cpu and float(divisor) == 1.0
    return None if needless else divisor, here
