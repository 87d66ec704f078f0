"""One step of an adaptive policy: one call of the extension, or Python on the host.

The formulas, constants, states and results are documented in csrc/core/policies.h.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradkern.kernels.backend import C


def policy_step(
    kind: str, total: Tensor, state: Tensor, constants: Sequence[float], norms: Tensor | None = None
) -> Tensor:
    """Take one step: decide, and update `state` in place.

    Args:
        kind: "autoclip", "zclip", "skip_outliers" or "adagc".
        total: 0-d: the total norm. If it is not finite, the state is not updated and nothing is limited.
        state: float64, on the device of `total`. A new state is all zeros.
        norms: [N]: the norm of each row, for "adagc".

    Returns:
        float64: (factor, skip, threshold); for "adagc" N factors, N thresholds and skip.

    Notes:
        Synchronises only on devices without a kernel, and if norms are of a tensor subclass.
    """
    # A wrapper subclass has no memory of its own that a kernel could read.
    plain = type(total) is Tensor and (norms is None or type(norms) is Tensor)
    if plain and (total.is_cpu or (total.is_cuda and C.build_info().get("cuda"))):
        result = C.policy_step_(kind, total, state, list(constants), norms)
        if result is not None:
            return result
    if total.is_meta:  # no parameter has a gradient
        return state.new_empty(3 if norms is None else 2 * len(norms) + 1)
    numbers = state.tolist()
    row = [] if norms is None else norms.tolist() if plain else [float(norm) for norm in norms.unbind()]
    decided = _STEPS[kind](float(total), numbers, list(constants), row)
    state.copy_(torch.tensor(numbers, dtype=torch.float64, device="cpu"))
    return torch.tensor(decided, dtype=torch.float64, device="cpu").to(total.device)


def _factor(threshold: float, norm: float) -> float:
    return min(1.0, threshold / (norm + 1e-6))


def _autoclip(total: float, state: list[float], constants: list[float], _: list[float]) -> list[float]:
    percentile, window = constants[0], int(constants[1])
    seen = int(state[0])
    latest = sorted(state[1 : 1 + min(seen, window)])
    threshold = _percentile(latest, percentile) if latest else math.inf
    if not math.isfinite(total):
        return [1.0, 0.0, threshold]
    state[1 + seen % window] = total
    state[0] = seen + 1
    latest = sorted(state[1 : 1 + min(seen + 1, window)])
    state[1 + window : 1 + window + len(latest)] = latest
    return [_factor(threshold, total), 0.0, threshold]


def _percentile(ascending: list[float], percentile: float) -> float:
    at = percentile / 100 * (len(ascending) - 1)
    below = min(int(at), len(ascending) - 1)
    above = min(below + 1, len(ascending) - 1)
    return ascending[below] + (at - below) * (ascending[above] - ascending[below])


def _zclip(total: float, state: list[float], constants: list[float], _: list[float]) -> list[float]:
    alpha, z_threshold, warmup, mode, max_norm, eps, clip_factor, skip_update = constants
    seen, mean, variance = state
    limit = math.inf
    if seen >= warmup and math.isfinite(total):
        deviation = math.sqrt(variance)
        z = (total - mean) / (deviation + eps)
        if mode == 0:
            bound = mean + z_threshold * deviation
            limit = bound if total > bound else math.inf
        elif z > z_threshold:
            adaptive = (mean + z_threshold * deviation / (z / z_threshold)) * clip_factor
            limit = adaptive if mode == 1 else mean
    threshold = min(limit, max_norm)
    if not math.isfinite(total):
        return [1.0, 0.0, threshold]
    if not (limit < math.inf and skip_update):
        if seen < warmup:
            off = total - mean
            mean += off / (seen + 1)
            variance += off * (total - mean)
            if seen + 1 >= warmup:
                variance /= seen + 1
        else:
            entering = min(limit, total)
            mean = alpha * mean + (1 - alpha) * entering
            variance = alpha * variance + (1 - alpha) * (entering - mean) ** 2
        state[:] = [seen + 1, mean, variance]
    return [_factor(threshold, total), 0.0, threshold]


def _skip_outliers(total: float, state: list[float], constants: list[float], _: list[float]) -> list[float]:
    sigma, window, min_steps, admit, max_norm = constants
    seen = int(state[0])
    latest = state[1 : 1 + min(seen, int(window))]
    limit = math.inf
    if len(latest) >= 2 and seen + 1 >= min_steps:
        mean = sum(latest) / len(latest)
        variance = sum((x - mean) ** 2 for x in latest) / (len(latest) - 1)
        limit = mean + sigma * math.sqrt(variance)
    if not math.isfinite(total):
        return [1.0, 0.0, limit]
    skip = total > limit
    if not skip or admit:
        state[1 + seen % int(window)] = total
        state[0] = seen + 1
    return [1.0 if skip else _factor(max_norm, total), float(skip), limit]


def _adagc(total: float, state: list[float], constants: list[float], norms: list[float]) -> list[float]:
    beta, lambda_abs, lambda_rel, warmup = constants
    warming_up, finite = state[0] < warmup, math.isfinite(total)
    factors, thresholds = [], []
    for row, norm in enumerate(norms, 1):
        mean, factor, threshold = state[row], 1.0, math.inf
        if math.isfinite(norm) and (finite or not warming_up):
            if warming_up:
                factor = _factor(lambda_abs, total)
            else:
                threshold = lambda_rel * mean if mean > 0 else lambda_abs
                factor = _factor(threshold, norm)
            clipped = norm * factor
            if clipped > 0:
                after = min(mean, clipped) if warming_up else beta * mean + (1 - beta) * clipped
                state[row] = clipped if mean == 0 else after
        factors.append(factor)
        thresholds.append(threshold)
    state[0] += finite
    return [*factors, *thresholds, 0.0]


_STEPS: dict[str, Callable[[float, list[float], list[float], list[float]], list[float]]] = {
    "autoclip": _autoclip,
    "zclip": _zclip,
    "skip_outliers": _skip_outliers,
    "adagc": _adagc,
}
