"""`Decision`: the result of a policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradkern.kernels.torch_scale import look


@dataclass(frozen=True)
class Decision:
    """What is to be done with the gradients. Tensors lie on their device; numbers are taken there without a
    synchronisation."""

    factor: Tensor | float
    """What gradients are multiplied by: a number or 0-d for all, or [N], one a row of the statistics. 1
    leaves them as they are."""
    skip: Tensor | bool | None = None
    """0-d bool: whether the optimizer is to skip this step. None: never."""
    threshold: float | Tensor | None = None
    """The norm above which the policy scales: a number, 0-d, or [N]. For the record only."""


@dataclass(frozen=True)
class SettledDecision:
    """A decision in tensors on the gradients' device, with checked shapes."""

    factor: Tensor
    """float64 (float32 on devices without it): 0-d or [N]."""
    skip: Tensor | None = None
    """0-d bool."""
    threshold: float | Tensor | None = None


def settled(found: Any, rows: int, device: torch.device, policy: str) -> SettledDecision:
    """What a policy's `decide` returned: a `Decision`, or its factor alone.

    Args:
        rows: how many rows the statistics have.
        device: the gradients' device.
        policy: the name of the policy, for messages.

    Raises:
        TypeError, ValueError: it is neither, of another shape, or negative, which shows on a CPU only.

    Notes:
        No synchronisation, unless a tensor lies on another device than the gradients. On a device it is too
        late to raise for a negative factor, which counts as 1. A NaN stays, as of a norm that is NaN.
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
    if negative.is_cpu and look(negative.any()):
        raise ValueError(
            f"[{policy}.decide] factor: expected numbers that are not negative, which would flip the signs "
            f"of gradients, got {float(factor.min())!r}. Gradients are unchanged."
        )
    factor = factor.masked_fill(negative, 1.0)
    if decision.skip is None:
        return SettledDecision(factor, None, decision.threshold)
    skip = _on_device(decision.skip, torch.bool, device, f"[{policy}.decide] expected skip")
    if skip.numel() != 1:
        raise ValueError(f"[{policy}.decide] skip: expected one bool, got shape {tuple(skip.shape)}")
    return SettledDecision(factor, skip.reshape(()), decision.threshold)


def _on_device(value: Any, dtype: torch.dtype, device: torch.device, expected: str) -> Tensor:
    if isinstance(value, Tensor) and not value.is_complex():
        return value.detach().to(device=device, dtype=dtype)
    if isinstance(value, Tensor) or not hasattr(value, "__float__"):
        what = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{expected} as a number or a tensor, got {what}")
    # Filled there: a tensor of the host would be copied, which waits for the device.
    return torch.full((), float(value), dtype=torch.float64, device=device).to(dtype)
