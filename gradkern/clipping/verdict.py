"""What becomes of a decision where gradients hold inf or NaN, and doing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradkern.clipping.ladder import written_shards
from gradkern.clipping.policies import Decision
from gradkern.kernels.measured import Measured
from gradkern.kernels.scale import is_one, scale_


@dataclass(frozen=True)
class Verdict:
    """What is to be done with the gradients, on their device."""

    factor: Tensor
    """0-d or [N]: what the gradients are to be multiplied by."""
    bad: Tensor
    """0-d bool: whether a gradient holds inf or NaN."""
    zero: Tensor | None
    """0-d bool: whether all gradients are to become zero."""
    skip: Tensor | None
    """0-d bool: whether the step is to be skipped; None: never."""


def judge(decision: Decision, bad: Tensor, on_nonfinite: str) -> Verdict:
    """The decision, unless inf or NaN forbids it (`decide_clip` of csrc/core/clip.h)."""
    factor, skip = decision.factor, decision.skip
    if on_nonfinite == "skip":
        skip = bad if skip is None else bad | skip
    if skip is not None:  # what is not used is not scaled
        factor = factor.masked_fill(skip, 1.0)
    if on_nonfinite != "zero":
        return Verdict(factor, bad, None, skip)
    return Verdict(factor.masked_fill(bad, 0.0), bad, bad, skip)


def smallest(factor: Tensor) -> Tensor:
    """`clip_coef` of the factors; NaN if there is one."""
    if factor.ndim == 0:
        return factor
    return factor.amin() if len(factor) else factor.new_ones(())


def raise_if_bad(measured: Measured, verdict: Verdict, names: Sequence[str], operation: str) -> None:
    """on_nonfinite="raise": the same on every rank. Synchronises."""
    if not bool(verdict.bad):
        return
    raise RuntimeError(
        f"[{operation}] expected finite gradients, got inf or NaN in: "
        f"{bad_parameters(measured.nonfinite, names)}. Gradients are unchanged."
    )


def bad_parameters(nonfinite: Tensor, names: Sequence[str]) -> str:
    """The names of parameters with inf or NaN, and how many elements, for a message. Synchronises."""
    found = [f"'{n}' ({c} elements)" for n, c in zip(names, nonfinite.tolist()) if c]
    listed = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
    return listed or "parameters of other ranks only"


def apply(
    params: Sequence[Tensor],
    factor: Tensor,
    zero: Tensor | None,
    held: Sequence[Tensor | None] | None = None,
) -> None:
    """Scale by `factor`; where the 0-d `zero` holds, set to zero instead.

    `held`: what this rank holds of each gradient, where that is known.
    """
    if zero is None and is_one(factor):
        return
    grads = [p.grad for p in params]
    scale_(grads, written_shards(grads) if held is None else held, factor, zero)


def split_for_fold(factor: Tensor) -> tuple[Tensor | None, Tensor]:
    """What an optimizer is to divide by, and what gradients are multiplied by here.

    torch's fused optimizers read the divisor as float32. Where it leaves that range (norms beyond the largest
    float32), gradients are scaled here and the optimizer gets 1.

    Returns:
        The divisor (None for 1, which only a CPU knows without a synchronisation), and the factor.
    """
    divisor = factor.reciprocal()
    limits = torch.finfo(torch.float32)
    representable = (divisor >= limits.smallest_normal) & (divisor <= limits.max)
    here = factor.masked_fill(representable, 1.0)
    divisor = divisor.masked_fill(~representable, 1.0)
    needless = divisor.is_cpu and float(divisor) == 1.0
    return None if needless else divisor, here
