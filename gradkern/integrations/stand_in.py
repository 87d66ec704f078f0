"""`stand_in`: describes an optimizer to a monitor if it steps copies or pieces of the parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def stand_in(
    optimizer: Any, params: Sequence[Tensor], groups: Iterable[Mapping[str, Any]]
) -> torch.optim.Optimizer | None:
    """An optimizer that never steps, with the class name, settings and learning rates of another one.

    Args:
        optimizer: the optimizer that steps.
        params: the model's parameters. Without parameters there is no stand-in.
        groups: the parameter groups of `optimizer`. With several it is unknown which parameter is where.
    """
    if not params:
        return None
    settings = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    own = list(params) if len(settings) == 1 else []
    made: torch.optim.Optimizer = type(type(optimizer).__name__, (torch.optim.Optimizer,), {})(params, {})
    made.param_groups = [{**group, "params": own} for group in settings]
    return made


def follow_rates(made: torch.optim.Optimizer | None, groups: Iterable[Mapping[str, Any]]) -> None:
    """Give the stand-in the current learning rates."""
    if made is not None:
        for mine, theirs in zip(made.param_groups, groups):
            mine["lr"] = theirs["lr"]
