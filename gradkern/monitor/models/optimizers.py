"""The optimizers of a run by name, and their learning rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradkern.params.arguments import unwrap_optimizer

Optimizers = Mapping[str, torch.optim.Optimizer]


def as_optimizers(optimizer: Any) -> dict[str, torch.optim.Optimizer]:
    """One optimizer, or several in a list or by name, as a dict. A single one is named "", those of a list
    "0", "1", …

    Raises:
        TypeError: an entry is not an optimizer.
    """
    if isinstance(optimizer, Mapping):
        given = {str(name): one for name, one in optimizer.items()}
    elif isinstance(optimizer, (list, tuple)):
        given = {str(index): one for index, one in enumerate(optimizer)}
    else:
        given = {"": optimizer}
    return {name: _as_optimizer(one) for name, one in given.items() if one is not None}


def takes_hooks(optimizer: Any) -> bool:
    """Whether step hooks can be registered. They cannot for fastai's own optimizers."""
    return unwrap_optimizer(optimizer) is optimizer


def _as_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer inside a wrapper. If there is no torch optimizer, the object itself if it has
    `param_groups`, for the learning rates."""
    found: torch.optim.Optimizer = unwrap_optimizer(optimizer) or optimizer
    if not hasattr(found, "param_groups"):
        raise TypeError(
            f"[GradMonitor] optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}; the "
            "folder of the run is run_dir="
        )
    return found


def as_rates(optimizers: Sequence[torch.optim.Optimizer]) -> list[Any]:
    """The current learning rate of each group of each optimizer: a float, or a tensor on a device."""
    rates = [group.get("lr") for optimizer in optimizers for group in optimizer.param_groups]
    for rate in rates:
        if type(rate) is not float:
            return [_as_rate(r) for r in rates]
    return rates


def _as_rate(rate: Any) -> float | Tensor:
    """A rate that is not a float. Capturable optimizers have tensors; NaN for what is not a number."""
    if isinstance(rate, Tensor):
        return rate if not rate.is_cpu else float(rate) if rate.numel() == 1 else float("nan")
    try:
        return float(rate)
    except (TypeError, ValueError, OverflowError):
        return float("nan")
