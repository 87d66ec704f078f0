"""Optimizers of the fifth set only, each defined by its update of one parameter."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

__all__ = ["FIFTH_OPTIMIZERS"]


class Rule(torch.optim.Optimizer):
    """Decoupled weight decay, then `update` for each parameter that has a gradient."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    state["step"] = state.get("step", 0) + 1
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    self.update(p, p.grad, state, group["lr"])

    @abstractmethod
    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], lr: float) -> None:
        """Change the parameter in place."""


def mean(state: dict[str, Any], name: str, value: Tensor, beta: float, *, debias: bool = True) -> Tensor:
    """The exponential average of a value, bias-corrected if requested."""
    average = state.setdefault(name, torch.zeros_like(value))
    average.mul_(beta).add_(value, alpha=1 - beta)
    return average / (1 - beta ** state["step"]) if debias else average


def trusted(p: Tensor, step: Tensor) -> Tensor:
    """Scales a step to the norm of its parameter (You et al. 2017); leaves steps of vectors as they are."""
    if p.dim() < 2:
        return step
    return step * (p.norm() / step.norm().clamp_min(1e-9)).clamp(0.01, 10)


class Signum(Rule):
    """The sign of a mean of gradients (Bernstein et al. 2018)."""

    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], lr: float) -> None:
        p.sub_(lr * mean(state, "first", grad, 0.9).sign())


class LARS(Rule):
    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], lr: float) -> None:
        scaled = trusted(p, grad) if p.dim() > 1 else grad
        p.sub_(lr * mean(state, "first", scaled, 0.9, debias=False))


class LAMB(Rule):
    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], lr: float) -> None:
        adam = mean(state, "first", grad, 0.9) / (mean(state, "second", grad**2, 0.99).sqrt() + 1e-6)
        p.sub_(lr * trusted(p, adam))


class AdaBelief(Rule):
    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], lr: float) -> None:
        first = mean(state, "first", grad, 0.9)
        apart = mean(state, "second", (grad - first) ** 2 + 1e-12, 0.99)
        p.sub_(lr * first / (apart.sqrt() + 1e-4))


class Yogi(Rule):
    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], lr: float) -> None:
        square = grad**2
        second = state.setdefault("second", square + 1e-6)
        second.add_(0.01 * (square - second).sign() * square)
        p.sub_(lr * mean(state, "first", grad, 0.9) / (second.sqrt() + 1e-3))


class Adan(Rule):
    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], lr: float) -> None:
        change = grad - state.get("last", grad)
        state["last"] = grad.clone()
        ahead = mean(state, "second", (grad + 0.92 * change) ** 2, 0.99)
        step = mean(state, "first", grad, 0.9) + 0.92 * mean(state, "change", change, 0.92)
        p.sub_(lr * step / (ahead.sqrt() + 1e-8))


class NovoGrad(Rule):
    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], lr: float) -> None:
        size = mean(state, "second", grad.square().sum(), 0.9)
        p.sub_(lr * mean(state, "first", grad / (size.sqrt() + 1e-8), 0.9, debias=False))


class Shampoo(Rule):
    """Gradients whitened on both sides of a matrix (Gupta et al. 2018), rescaled to the gradient's size."""

    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], lr: float) -> None:
        step = grad
        if p.dim() == 2 and max(p.shape) <= 64:
            for side, square in enumerate((grad @ grad.T, grad.T @ grad)):
                sums = mean(state, f"side{side}", square, 0.95) + 1e-8 * torch.eye(len(square))
                if state["step"] % 5 == 1:
                    values, vectors = torch.linalg.eigh(sums)
                    state[f"root{side}"] = (vectors * values.clamp_min(1e-10) ** -0.25) @ vectors.T
            step = state["root0"] @ grad @ state["root1"]
            step = step * grad.norm() / step.norm().clamp_min(1e-12)
        p.sub_(lr * mean(state, "first", step, 0.9, debias=False))


class Sophia(Rule):
    """A mean of gradients divided by a mean of their squares, clipped at one (after Liu et al. 2023)."""

    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], lr: float) -> None:
        first, second = mean(state, "first", grad, 0.95), mean(state, "second", grad**2, 0.99)
        p.sub_(lr * (first / (20 * second + 1e-8)).clamp(-1, 1))


class ScheduleFree(Rule):
    """Gradients between a fast sequence and its mean (Defazio et al. 2024)."""

    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], lr: float) -> None:
        fast = state.setdefault("fast", p.clone())
        average = state.setdefault("average", p.clone())
        fast.sub_(lr * grad)
        average.lerp_(fast, 1 / state["step"])
        p.copy_(torch.lerp(fast, average, 0.9))


class QuasiHyperbolic(Rule):
    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], lr: float) -> None:
        p.sub_(lr * torch.lerp(grad, mean(state, "first", grad, 0.99), 0.7))


class Centralized(Rule):
    """Momentum on gradients without the mean of each row (gradient centralization)."""

    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], lr: float) -> None:
        if grad.dim() > 1:
            grad = grad - grad.flatten(1).mean(1).view(-1, *[1] * (grad.dim() - 1))
        p.sub_(lr * mean(state, "first", grad, 0.9, debias=False) * 10)


class Covered(Rule):
    """Adagrad with a sum for each row and each column (SM3)."""

    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], lr: float) -> None:
        square = grad**2
        if grad.dim() == 2:
            rows = state.setdefault("rows", torch.zeros(len(p), 1))
            columns = state.setdefault("columns", torch.zeros(1, p.shape[1]))
            square = square + torch.minimum(rows, columns)
            state["rows"], state["columns"] = square.amax(1, keepdim=True), square.amax(0, keepdim=True)
        else:
            state["all"] = square = square + state.get("all", 0)
        p.sub_(lr * mean(state, "first", grad / (square.sqrt() + 1e-8), 0.9, debias=False))


class Mixed(Rule):
    """Adam with a second, slower mean of gradients (AdEMAMix)."""

    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], lr: float) -> None:
        slow = mean(state, "slow", grad, 0.99, debias=False)
        step = mean(state, "first", grad, 0.9) + 2 * slow
        p.sub_(lr * step / (mean(state, "second", grad**2, 0.99).sqrt() + 1e-8))


class Projected(Rule):
    """Adam on the four leading directions of a matrix's gradient (GaLore)."""

    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], lr: float) -> None:
        flat = p.dim() == 2 and min(p.shape) > 4
        if flat and state["step"] % 20 == 1:
            state["side"] = torch.linalg.svd(grad, full_matrices=False).U[:, :4]
        low = state["side"].T @ grad if flat else grad
        step = mean(state, "first", low, 0.9) / (mean(state, "second", low**2, 0.99).sqrt() + 1e-8)
        p.sub_(lr * (state["side"] @ step if flat else step))


class Bounded(Rule):
    """Adam whose rates for each element lie between bounds that close (AdaBound)."""

    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], lr: float) -> None:
        rate = lr / (mean(state, "second", grad**2, 0.99).sqrt() + 1e-8)
        closing = 1 / (0.01 * state["step"] + 1)
        p.sub_(
            rate.clamp(30 * lr * (1 - closing), 30 * lr * (1 + 10 * closing))
            * mean(state, "first", grad, 0.9)
        )


FIFTH_OPTIMIZERS: dict[str, type[Rule]] = {
    "signum": Signum,
    "lars": LARS,
    "lamb": LAMB,
    "adabelief": AdaBelief,
    "yogi": Yogi,
    "adan": Adan,
    "novograd": NovoGrad,
    "shampoo": Shampoo,
    "sophia": Sophia,
    "schedule_free": ScheduleFree,
    "quasi_hyperbolic": QuasiHyperbolic,
    "centralized": Centralized,
    "covered": Covered,
    "mixed": Mixed,
    "projected": Projected,
    "bounded": Bounded,
}
