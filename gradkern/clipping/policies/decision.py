"""`Decision`: the result of a policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradkern.kernels.torch_scale import known_bool
from gradkern.params.arguments import as_number


@dataclass(frozen=True)
class Decision:
    """How to clip the gradients of one step. Tensors should be on the gradients' device. Numbers are moved
    there without a synchronisation."""

    factor: Tensor | float
    """The factor to multiply gradients by: a number or 0-d tensor for all of them, or [N] with one per row of
    the statistics. Gradients with a factor of 1 are not written."""
    skip: Tensor | bool | None = None
    """0-d bool: whether the optimizer has to skip this step. None means no."""
    threshold: float | Tensor | None = None
    """The norm above which the policy clips: a number, or a 0-d or [N] tensor. Recorded, not used."""


@dataclass(frozen=True)
class SettledDecision:
    """A decision in tensors on the gradients' device, with checked shapes."""

    factor: Tensor
    """float64 (float32 on devices without it): 0-d or [N]."""
    skip: Tensor | None = None
    """0-d bool."""
    threshold: float | Tensor | None = None


def settled(found: Any, rows: int, device: torch.device, policy: str) -> SettledDecision:
    """Check the result of a policy's `decide` and convert it to tensors on the gradients' device.

    Args:
        found: a `Decision`, or only its factor.
        rows: number of rows of the statistics.
        device: the gradients' device.
        policy: the name of the policy, for messages.

    Raises:
        TypeError, ValueError: it is something else, has another shape, or a factor on the CPU is negative.

    Notes:
        No synchronisation, unless a tensor is on another device than the gradients. A negative factor on a
        device cannot be checked and counts as 1. NaN and inf are kept: NaN comes from a norm that is NaN.
    """
    decision = found if isinstance(found, Decision) else Decision(found)
    wide = torch.float32 if device.type == "mps" else torch.float64
    factor = _on_device(decision.factor, wide, device, f"[{policy}.decide] expected a Decision, or a factor")
    if factor.shape not in ((), (rows,)):
        raise ValueError(
            f"[{policy}.decide] factor: expected one number or one for each of {rows} rows, got "
            f"{tuple(factor.shape)}"
        )
    negative = factor < 0
    if negative.is_cpu and known_bool(negative.any()):
        raise ValueError(
            f"[{policy}.decide] factor: expected numbers that are not negative, which would flip the signs "
            f"of gradients, got {float(factor.min())!r}. Gradients are unchanged."
        )
    factor = factor.masked_fill(negative, 1.0)
    threshold = _threshold(decision.threshold, rows, policy)
    if decision.skip is None:
        return SettledDecision(factor, None, threshold)
    skip = _on_device(decision.skip, torch.bool, device, f"[{policy}.decide] expected skip")
    if skip.numel() != 1:
        raise ValueError(f"[{policy}.decide] skip: expected one bool, got shape {tuple(skip.shape)}")
    return SettledDecision(factor, skip.reshape(()), threshold)


def _threshold(value: Any, rows: int, policy: str) -> float | Tensor | None:
    if value is None or isinstance(value, float):
        return value
    if isinstance(value, Tensor):
        if value.shape not in ((), (rows,)) or value.is_complex() or value.layout is not torch.strided:
            raise ValueError(
                f"[{policy}.decide] threshold: expected one real number or one for each of {rows} rows, got "
                f"shape {tuple(value.shape)} of {value.dtype}"
            )
        return value.detach()
    return float(as_number(f"{policy}.decide", "threshold", value))


def _on_device(value: Any, dtype: torch.dtype, device: torch.device, expected: str) -> Tensor:
    if isinstance(value, Tensor) and not value.is_complex():
        return value.detach().to(device=device, dtype=dtype)
    if isinstance(value, Tensor) or not hasattr(value, "__float__"):
        what = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{expected} as a number or a tensor, got {what}")
    try:
        number = float(value)
    except (TypeError, ValueError) as error:  # a NumPy array, say
        raise type(error)(f"{expected} as a number or a tensor, got {value!r}") from error
    # Filled on the device: copying a tensor from the host would wait for it.
    return torch.full((), number, dtype=torch.float64, device=device).to(dtype)
