"""A warning about gradients that are recorded while they still carry a GradScaler's scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradkern.monitor.checks.device_warning import DeviceWarning
from gradkern.monitor.sample import elements
from gradkern.params.stats import GradStats

#: A smaller divisor is not regarded as a loss scale: it may be a mean over two ranks.
_LEAST = 4.0
_ELEMENTS = 64


def _message(divisor: float) -> str:
    return (
        f"[GradMonitor.record] between record() and optimizer.step() the gradients were divided by "
        f"{divisor:g}, an exact power of two, as a GradScaler divides by its loss scale. They carried that "
        "factor when they were measured, so the recorded norms are too large. Call clip_(scaler=scaler) or "
        "scaler.unscale_(optimizer) before record(), or pass record(inv_scale=1 / scaler.get_scale())"
    )


class LossScale:
    """Compares a gradient at `record` with the one that the optimizer steps with.

    In between, a GradScaler divides gradients by a power of two, or gives a fused optimizer the scale to
    divide by. No synchronisation.
    """

    def __init__(self) -> None:
        self._warning = DeviceWarning()
        self._param: Tensor | None = None
        self._grad: Tensor | None = None
        self._before: Tensor | None = None
        self._told = False

    @torch.no_grad()
    def recorded(self, params: Sequence[Tensor], stats: GradStats) -> None:
        """Keep some elements of a gradient, unless the statistics already account for a scale."""
        self._param = self._before = None
        self._told = self._told or self._warning.poll()
        if self._told or isinstance(stats.inv_scale, Tensor) or stats.inv_scale != 1.0:
            return
        if (
            stats.clip_coef is not None and not stats.applied
        ):  # folded: the optimizer divides by the coefficient
            return
        row = stats.has_grad.index(True) if len(params) == len(stats) and True in stats.has_grad else 0
        self._param = params[row] if params else None
        self._before = None if self._param is None else _elements(self._param.grad)
        self._grad = None if self._param is None else self._param.grad

    @torch.no_grad()
    def stepping(self, optimizer: torch.optim.Optimizer) -> None:
        """Compare, if elements are kept."""
        param, before, grad = self._param, self._before, self._grad
        self._param = self._before = self._grad = None
        if param is None or before is None or param.grad is not grad:
            return
        after = _elements(grad)
        if after is not None:
            handed: Any = getattr(optimizer, "grad_scale", None)
            divisor = handed if isinstance(handed, Tensor) else 1.0
            self._warning.ask(_power_of_two(before, after, divisor), _message)
            self._told = self._warning.poll()


def _elements(grad: Tensor | None) -> Tensor | None:
    """A copy of a few elements; None if there are no numbers in plain memory."""
    flat = None if grad is None else elements(grad)
    if flat is None or not len(flat):
        return None
    return flat[:: max(1, len(flat) // _ELEMENTS)][:_ELEMENTS].to(torch.float64, copy=True)


def _power_of_two(before: Tensor, after: Tensor, divisor: Tensor | float) -> Tensor:
    """The divisor of all elements if it is the same power of two, else 0."""
    largest = before.abs().argmax()
    ratio = before[largest] / after[largest]
    if isinstance(divisor, Tensor):
        ratio = ratio * divisor.to(ratio.device, torch.float64)
        after = after / divisor.to(ratio.device, torch.float64)
    mantissa, _ = torch.frexp(ratio)
    exact = torch.isclose(after * ratio, before, rtol=1e-3, atol=0.0).all()  # small ones are rounded
    return torch.where((mantissa == 0.5) & (ratio >= _LEAST) & exact, ratio, 0.0)
