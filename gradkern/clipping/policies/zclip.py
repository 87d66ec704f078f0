"""`ZClip`: clip norms that are far above their running mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from gradkern.clipping.policies.checks import Check, at_least, flag, one_of, whole, within
from gradkern.clipping.policies.stateful import StepPolicy
from gradkern.params.arguments import as_limit

_MODES = {"percentile": 0, "adaptive_scaling": 1, "mean": 2}


class ZClip(StepPolicy):
    """Clip a total norm that is more than `z_thresh` standard deviations above its running mean.

    Source: Kumar et al., "ZClip: Adaptive spike mitigation for LLM pre-training", 2025, with the formulas of
    the package `zclip` 1.0.0. Unlike there, norms that are not finite are ignored.

    The running mean and variance start as those of the first `warmup_steps` norms. Later they are updated
    with the norm after clipping.

    Args:
        alpha: weight of the past in the running mean and variance, from 0 to 1.
        z_thresh: the z-score above which a norm is an outlier.
        warmup_steps: number of steps that only collect statistics (and are limited to `max_norm`).
        mode: the norm that outliers are scaled to:

            - "adaptive_scaling": ``(mean + z_thresh * std * (z_thresh / z)) * clip_factor``.
            - "mean": the mean.
            - "percentile": ``mean + z_thresh * std``.
        max_norm: a limit that holds in every step; `inf` for none. The default of the package is 1.
        clip_factor: factor of the threshold of "adaptive_scaling".
        skip_update_on_spike: whether outliers leave the mean and variance unchanged.
        eps: added to the standard deviation when z is calculated.

    Raises:
        TypeError, ValueError: an invalid argument.
    """

    kind = "zclip"
    _checks: ClassVar[Mapping[str, Check]] = {
        "alpha": partial(within, low=0.0, high=1.0),
        "z_thresh": partial(at_least, low=0.0),
        "warmup_steps": partial(whole, least=1),
        "mode": partial(one_of, choices=_MODES),
        "max_norm": as_limit,
        "clip_factor": partial(at_least, low=0.0),
        "skip_update_on_spike": flag,
        "eps": partial(at_least, low=0.0),
    }

    def __init__(
        self,
        alpha: float = 0.97,
        z_thresh: float = 2.5,
        warmup_steps: int = 25,
        mode: str = "adaptive_scaling",
        max_norm: float = math.inf,
        *,
        clip_factor: float = 1.0,
        skip_update_on_spike: bool = False,
        eps: float = 1e-6,
    ) -> None:
        self.alpha = alpha
        self.z_thresh = z_thresh
        self.warmup_steps = warmup_steps
        self.mode = mode
        self.max_norm = max_norm
        self.clip_factor = clip_factor
        self.skip_update_on_spike = skip_update_on_spike
        self.eps = eps

    def constants(self) -> tuple[float, ...]:
        return (
            self.alpha,
            self.z_thresh,
            self.warmup_steps,
            _MODES[self.mode],
            self.max_norm,
            self.eps,
            self.clip_factor,
            float(self.skip_update_on_spike),
        )

    def state_size(self, rows: int) -> int:
        return 3
