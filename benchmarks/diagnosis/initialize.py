"""Initializations by name, applied to the dense and convolutional layers of a model."""

from __future__ import annotations

import math

import torch
from torch import nn


@torch.no_grad()
def initialize(model: nn.Module, name: str) -> None:
    """Set matrices as `name` says (see `Recipe.init`) and their biases to zero; "default" leaves torch's."""
    kind, _, argument = name.partition(":")
    if kind == "default":
        return
    value = float(argument or 0)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            _set(module.weight, kind, value)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.RNN, nn.LSTM, nn.GRU)):
            for parameter in module.parameters():
                if parameter.dim() == 2:
                    _set(parameter, kind, value)


def _set(weight: nn.Parameter, kind: str, value: float) -> None:
    fan_in = weight[0].numel()
    if kind == "he":
        nn.init.kaiming_normal_(weight, nonlinearity="relu")
    elif kind == "xavier":
        nn.init.xavier_normal_(weight)
    elif kind == "orthogonal":
        nn.init.orthogonal_(weight, gain=value or 1.0)
    elif kind == "gain":
        nn.init.normal_(weight, 0.0, value / math.sqrt(fan_in))
    elif kind == "normal":
        nn.init.normal_(weight, 0.0, value)
    elif kind == "uniform":  # torch.rand
        nn.init.uniform_(weight, 0.0, value)
    elif kind == "constant":
        nn.init.constant_(weight, value)
    else:
        raise ValueError(f"[initialize] name: expected a known initialization, got {kind!r}")
