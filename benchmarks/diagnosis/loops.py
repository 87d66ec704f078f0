"""What some loops do around backward and the step: sharpness-aware steps, lookahead, Lion, noise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

__all__ = ["Lion", "Lookahead", "add_noise", "sharpened"]


@contextlib.contextmanager
def sharpened(model: nn.Module, radius: float) -> Iterator[None]:
    """A context in which weights are moved up their gradient by `radius` and gradients are cleared (SAM)."""
    params = [p for p in model.parameters() if p.grad is not None]
    grads = [p.grad.clone() for p in params]  # type: ignore[union-attr]
    size = torch.stack([g.norm() for g in grads]).norm() + 1e-12
    moves = [radius * g / size for g in grads]
    model.zero_grad()
    with torch.no_grad():
        torch._foreach_add_(params, moves)
    yield
    with torch.no_grad():
        torch._foreach_sub_(params, moves)


class Lookahead:
    """Slow weights that move half of the way every `every` steps; training continues from there."""

    def __init__(self, model: nn.Module, every: int) -> None:
        self._params = [p for p in model.parameters() if p.requires_grad]
        self._slow = [p.detach().clone() for p in self._params]
        self._every, self._count = every, 0

    @torch.no_grad()
    def step(self) -> None:
        self._count += 1
        if self._count % self._every == 0:
            torch._foreach_lerp_(self._slow, self._params, 0.5)
            torch._foreach_copy_(self._params, self._slow)


@torch.no_grad()
def add_noise(model: nn.Module, share: float) -> None:
    """Normal noise of a share of each gradient's rms (after Neelakantan et al. 2015)."""
    for p in model.parameters():
        if p.grad is not None:
            p.grad.add_(torch.randn_like(p.grad) * share * p.grad.square().mean().sqrt())


class Lion(torch.optim.Optimizer):
    """The sign of the momentum (Chen et al. 2023)."""

    def __init__(self, params: list[dict[str, object]], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99), "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            fast, slow = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                mean: Tensor = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * torch.lerp(p.grad, mean, fast).sign())
                mean.lerp_(p.grad, 1 - slow)
