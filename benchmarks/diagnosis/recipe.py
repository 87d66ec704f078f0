"""`Recipe`: what makes a training run, as plain values: a fault or a cure is a change of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """One training run but for its seed. Faults and cures are made with `dataclasses.replace`."""

    arch: str = "mlp"
    """A builder of `models.ARCHITECTURES`."""
    task: str = "digits"
    """Data and loss: a key of `tasks.TASKS`."""
    depth: int = 4
    """Matrices (or blocks) from the input to the output."""
    width: int = 32
    activation: str = "relu"
    init: str = "default"
    """"default", "he", "xavier", "orthogonal", "gain:3", "normal:0.01", "uniform:1", "constant:0.1"."""
    norm: str = "none"
    """"none", "batch" or "layer", between the layers."""
    residual: bool = False
    dropout: float = 0.0
    optimizer: str = "adam"
    lr: float = 3e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    warmup: int = 0
    schedule: str = "constant"
    """"constant", "cosine", "restarts", "steps", "inverse_sqrt", "linear", "one_cycle", "triangles",
    "range", "spent", "plunging" or "growing"."""
    batch: int = 32
    steps: int = 80
    accumulate: int = 1
    max_norm: float = math.inf
    """If inf, gradients are measured and not clipped."""
    on_nonfinite: str = "propagate"
    input_scale: float = 1.0
    target_scale: float = 1.0
    precision: str = "float32"
    """"float32"; "float16" and "bfloat16" weights; "amp_float16" and "amp_bfloat16" (autocast)."""
    loss_scale: float = 1.0
    extras: tuple[str, ...] = ()
    """Further changes of the run as "name:argument", such as "spike:40"; see `train.py`."""

    def extra(self, name: str) -> str | None:
        """The argument of an extra ("" without one), or None if the recipe does not have it."""
        for extra in self.extras:
            head, _, argument = extra.partition(":")
            if head == name:
                return argument
        return None

    def without(self, *names: str) -> tuple[str, ...]:
        """The extras except those named."""
        return tuple(extra for extra in self.extras if extra.partition(":")[0] not in names)
