"""Every policy once more, over whole gradients in float64 on one process: the formulas of the papers.

An oracle is called once per step with the weights and gradients of its group by name. It returns the new
gradients, or None if it skips the step.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from gradkern import policies

Gradients = dict[str, Tensor]
Oracle = Callable[[Gradients, Gradients], Gradients | None]


def norm_of(grads: list[Tensor]) -> float:
    return math.sqrt(math.fsum(float(g.square().sum()) for g in grads))


def limited(limit: float, norm: float) -> float:
    return min(1.0, limit / (norm + 1e-6))


def scaled(grads: Gradients, factor: float) -> Gradients:
    return {name: g * factor for name, g in grads.items()}


def by_norm(limit_of: Callable[[float], float | None]) -> Oracle:
    """A policy that limits the total norm: `limit_of` is called with it."""

    def step(weights: Gradients, grads: Gradients) -> Gradients | None:
        norm = norm_of(list(grads.values()))
        limit = limit_of(norm)
        return None if limit is None else scaled(grads, limited(limit, norm))

    return step


def per_layer(limit: float) -> Oracle:
    def step(weights: Gradients, grads: Gradients) -> Gradients:
        layer = {name: name.rpartition(".")[0] for name in grads}
        norms = {of: norm_of([g for n, g in grads.items() if layer[n] == of]) for of in layer.values()}
        return {name: g * limited(limit, norms[layer[name]]) for name, g in grads.items()}

    return step


def value(limit: float) -> Oracle:
    return lambda weights, grads: {name: g.clamp(-limit, limit) for name, g in grads.items()}


def agc(clip_factor: float) -> Oracle:
    """timm's units: the first dimension of matrices and larger tensors, and vectors as a whole."""

    def of_unit(t: Tensor) -> Tensor:
        return t.square().sum(tuple(range(1, t.ndim)) if t.ndim > 1 else None, keepdim=True).sqrt()

    def step(weights: Gradients, grads: Gradients) -> Gradients:
        clipped = {}
        for name, g in grads.items():
            largest, norm = of_unit(weights[name]).clamp(min=1e-3) * clip_factor, of_unit(g)
            clipped[name] = torch.where(norm < largest, g, g * (largest / norm.clamp(min=1e-6)))
        return clipped

    return step


def autoclip(percentile: float, window: int) -> Oracle:
    norms: list[float] = []

    def limit_of(norm: float) -> float:
        latest = torch.tensor(norms[-window:], dtype=torch.float64)
        norms.append(norm)
        return latest.quantile(percentile / 100).item() if len(latest) else math.inf

    return by_norm(limit_of)


def zclip(alpha: float, threshold: float, warmup: int) -> Oracle:
    first: list[float] = []
    moments: list[float] = []

    def limit_of(norm: float) -> float:
        if not moments:
            first.append(norm)
            if len(first) == warmup:
                moments[:] = [statistics.fmean(first), statistics.pvariance(first)]
            return math.inf
        mean, variance = moments
        deviation = math.sqrt(variance)
        z = (norm - mean) / (deviation + 1e-6)
        limit = mean + threshold * deviation / (z / threshold) if z > threshold else math.inf
        entering = min(norm, limit)
        mean = alpha * mean + (1 - alpha) * entering
        moments[:] = [mean, alpha * variance + (1 - alpha) * (entering - mean) ** 2]
        return limit

    return by_norm(limit_of)


def adagc(beta: float, lambda_abs: float, lambda_rel: float, warmup: int) -> Oracle:
    means: dict[str, float] = {}
    steps = 0

    def step(weights: Gradients, grads: Gradients) -> Gradients:
        nonlocal steps
        together = limited(lambda_abs, norm_of(list(grads.values())))
        clipped = {}
        for name, g in grads.items():
            factor = together if steps < warmup else limited(lambda_rel * means[name], norm_of([g]))
            clipped[name] = g * factor
            after = norm_of([clipped[name]])
            if steps < warmup:
                means[name] = min(means.get(name, math.inf), after)
            else:
                means[name] = beta * means[name] + (1 - beta) * after
        steps += 1
        return clipped

    return step


def skip_outliers(sigma: float, window: int, least: int) -> Oracle:
    norms: list[float] = []
    seen = 0

    def limit_of(norm: float) -> float | None:
        nonlocal seen
        seen += 1
        latest = norms[-window:]
        if seen >= least and norm > statistics.fmean(latest) + sigma * statistics.stdev(latest):
            return None
        norms.append(norm)
        return math.inf

    return by_norm(limit_of)


def schedule() -> Oracle:
    limits = iter(range(1, 1000))
    return by_norm(lambda norm: float(next(limits)))


POLICIES: dict[str, tuple[Callable[[], policies.Policy], Callable[[], Oracle]]] = {
    "GlobalNorm": (lambda: policies.GlobalNorm(3.0), lambda: by_norm(lambda norm: 3.0)),
    "PerLayerNorm": (lambda: policies.PerLayerNorm(2.0), lambda: per_layer(2.0)),
    "Value": (lambda: policies.Value(0.5), lambda: value(0.5)),
    "AGC": (lambda: policies.AGC(0.1), lambda: agc(0.1)),
    "AutoClip": (lambda: policies.AutoClip(50.0, 3), lambda: autoclip(50.0, 3)),
    "ZClip": (lambda: policies.ZClip(warmup_steps=3), lambda: zclip(0.97, 2.5, 3)),
    "AdaGC": (lambda: policies.AdaGC(warmup_steps=2), lambda: adagc(0.98, 1.0, 1.05, 2)),
    "SkipOutliers": (
        lambda: policies.SkipOutliers(4.0, 4, min_steps=4),
        lambda: skip_outliers(4.0, 4, 4),
    ),
    "Schedule": (lambda: policies.Schedule(lambda step: 1.0 + step), schedule),
    "custom": (
        lambda: policies.custom(lambda stats: (2.0 / (stats.deciding() + 1e-6)).clamp(max=1.0)),
        lambda: by_norm(lambda norm: 2.0),
    ),
}
"""Every policy with its oracle."""

__all__ = ["POLICIES", "Gradients", "Oracle", "norm_of"]
