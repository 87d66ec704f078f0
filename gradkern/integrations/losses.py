"""`Losses`: the losses of a program that does not report them, from what it calls `backward` on."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradkern.monitor import GradMonitor
from gradkern.params.stats import GradStats

_SCALER = "_gradkern_scaler"


class _Sum:
    """What `backward` was called on since the previous clip."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.known = True  # False if something was no number

    def add(self, value: Tensor | None) -> None:
        if value is None:
            self.known = False
        else:
            self.total = value if self.total is None else self.total + value.to(self.total.device)


class Losses:
    """Adds a loss to the steps of monitors: the sum of what `backward` was called on since the previous clip.

    The gradient that is clipped is the gradient of this sum. Losses of micro-batches that are divided by
    their number add up to their mean. The scale of a GradScaler is divided out. A step has no loss if
    `backward` was called on a tensor with several elements. No host-device synchronisation.
    """

    def __init__(self) -> None:
        self._sum, self._is_clipped = _Sum(), False
        self._due: dict[tuple[GradMonitor, int], list[_Sum]] = {}
        self._running = False
        self._scaler: Any = None

    def install(self) -> None:
        """Chain `torch.autograd.backward`, which `Tensor.backward` calls, and `scale` of all GradScalers."""
        backward, made = torch.autograd.backward, torch.amp.GradScaler.__init__

        @functools.wraps(backward)
        def noted(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> None:
            if self._running or torch.compiler.is_compiling():  # within another: reentrant checkpointing
                return backward(tensors, grad_tensors, *args, **kwargs)
            self._running = True
            try:
                backward(tensors, grad_tensors, *args, **kwargs)
            finally:
                self._running = False
            self._note(_as_list(tensors), _as_list(grad_tensors))

        @functools.wraps(made)
        def make(scaler: Any, *args: Any, **kwargs: Any) -> None:
            made(scaler, *args, **kwargs)
            cls = type(scaler)
            if not hasattr(cls.scale, _SCALER):
                cls.scale = self._marking(cls.scale)

        torch.autograd.backward = noted
        torch.amp.GradScaler.__init__ = make  # type: ignore[assignment,method-assign]

    def _marking(self, scale: Any) -> Any:
        """A GradScaler's method, which notes what it has scaled."""

        @functools.wraps(scale)
        def marking(scaler: Any, outputs: Any) -> Any:
            result = scale(scaler, outputs)
            if scaler.is_enabled() and not self._running:
                self._scaler = functools.partial(scale, scaler)
                for one in _as_list(result):
                    if isinstance(one, Tensor):
                        setattr(one, _SCALER, self._scaler)
            return result

        setattr(marking, _SCALER, True)
        return marking

    @torch.no_grad()
    def _note(self, roots: Sequence[Any], weights: Sequence[Any]) -> None:
        self.settle()
        if self._is_clipped:
            self._sum, self._is_clipped = _Sum(), False
        for root, weight in zip(roots, weights or [None] * len(roots), strict=False):
            # What was made from a scaled loss since the last call has no mark of its own.
            value, scale = _number(root), getattr(root, _SCALER, self._scaler)
            if value is not None and isinstance(weight, Tensor):
                value = value * weight.reshape(())
            if value is not None and scale is not None:
                value = value / scale(torch.ones_like(value))
            self._sum.add(value)
        self._scaler = None

    def clipped(self, monitor: GradMonitor) -> None:
        """A monitor has collected a clip."""
        sums = self._due.setdefault((monitor, monitor.step + 1), [])
        if not any(one is self._sum for one in sums):
            sums.append(self._sum)
        self._is_clipped = True

    def settle(self) -> None:
        """Add the losses of the steps that are recorded by now."""
        for monitor, step in [key for key in self._due if key[0].step >= key[1]]:
            sums = self._due.pop((monitor, step))
            totals = [one.total for one in sums if one.known and one.total is not None]
            if monitor.is_open and len(totals) == len(sums):
                monitor.amend(step, loss=functools.reduce(torch.add, totals))


class LossMonitor(GradMonitor):
    """A monitor whose steps get the losses of `losses`."""

    losses: Losses

    def collect(self, stats: GradStats, *, again: bool = False, before_clip: bool = True) -> None:
        """As `GradMonitor.collect`."""
        super().collect(stats, again=again, before_clip=before_clip)
        self.losses.clipped(self)

    def close(self) -> None:
        """As `GradMonitor.close`, after the loss of the last step."""
        if self.is_open:
            if self.has_pending:
                self.flush()
            self.losses.settle()
        super().close()


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def _number(root: Any) -> Tensor | None:
    """Copy a loss, because the program may modify it later. None if it is not a number."""
    if not isinstance(root, Tensor) or root.numel() != 1 or root.is_complex():
        return None
    if root.is_cuda and torch.cuda.is_current_stream_capturing():
        return None  # replays of the graph are not seen
    value: Any = root.detach()
    placements = getattr(root, "placements", ())  # of a DTensor
    if placements and not all(placement.is_replicate() for placement in placements):
        return None
    local: Tensor = value.to_local() if placements else value
    return local.float().reshape(()).clone()
