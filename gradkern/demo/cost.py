"""The time of a clip, by gradkern and by torch, on the gradients of a training run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradkern.clipping.clipper import GradClipper
from gradkern.clipping.functional import clip_grad_norm_

TORCH = "torch.nn.utils.clip_grad_norm_"
FUNCTION = "gradkern.clip_grad_norm_"
CLIPPER = "GradClipper.clip_, with statistics"


class ClipCost:
    """Times clipping by torch and by gradkern on the same gradients, one after the other, every step.

    The gradients are copied back before each timed call and after the last one. Every call therefore finds
    the same values, equally warm in the cache, and training is not affected. The order of the calls rotates
    from step to step.
    """

    def __init__(self, params: Sequence[Tensor], clipper: GradClipper) -> None:
        self._params = list(params)
        self._saved = [torch.empty_like(p) for p in self._params]
        max_norm = clipper.max_norm
        self._calls: list[tuple[str, Callable[[], Any]]] = [
            (TORCH, lambda: torch.nn.utils.clip_grad_norm_(self._params, max_norm)),
            (FUNCTION, lambda: clip_grad_norm_(self._params, max_norm)),
            (CLIPPER, clipper.clip_),
        ]
        self.microseconds: dict[str, list[float]] = {name: [] for name, _ in self._calls}
        self.tensors = len(self._params)
        self.elements = sum(p.numel() for p in self._params)

    @torch.no_grad()
    def sample(self) -> float:
        """Time each call once. Returns the seconds that the sampling took."""
        started = time.perf_counter()
        for saved, param in zip(self._saved, self._params):
            assert param.grad is not None, "every parameter of the demo's models has a gradient"
            saved.copy_(param.grad)
        for name, call in self._calls:
            self._restore()
            before = time.perf_counter_ns()
            call()
            self.microseconds[name].append((time.perf_counter_ns() - before) / 1e3)
        self._restore()
        self._calls.append(self._calls.pop(0))
        return time.perf_counter() - started

    def _restore(self) -> None:
        for saved, param in zip(self._saved, self._params):
            assert param.grad is not None
            param.grad.copy_(saved)

    def quartiles(self, name: str, steps: Sequence[int]) -> tuple[float, float, float] | None:
        """25th, 50th and 75th percentile over some steps (from 1), in microseconds; None if fewer than 4."""
        if len(steps) < 4:
            return None
        low, middle, high = statistics.quantiles([self.microseconds[name][step - 1] for step in steps], n=4)
        return low, middle, high
