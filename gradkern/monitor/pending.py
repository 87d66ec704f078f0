"""`PendingStep`: statistics that others measured for the step under way, until it is recorded."""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from gradkern.params import steps
from gradkern.params.names import first_rows
from gradkern.params.stats import GradStats


class PendingStep:
    """Collects statistics of some or all parameters, from one clip or several, into one step.

    The step is closed when every optimizer has stepped, or when a parameter comes a second time.

    Args:
        optimizers: those of the monitor; may be empty.
        close: records what `take` returns; held weakly.
    """

    def __init__(self, optimizers: Iterable[torch.optim.Optimizer], close: Callable[[], None]) -> None:
        self._optimizers = list(optimizers)
        self._close = weakref.WeakMethod(close)
        self._parts: list[GradStats] = []
        self._given: GradStats | None = None
        self._seen: set[int] = set()
        self._stepped: set[int] = set()
        # Before the monitor's other listeners are: what is held is recorded when these hear of the step.
        for optimizer in self._optimizers:
            steps.listen(optimizer, self)

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, stats: GradStats) -> None:
        """Take statistics in; what is held is recorded first if they repeat a parameter of it."""
        identities = set(stats._identities)
        if not self._seen.isdisjoint(identities):
            if self._only_measured():
                self._forget()  # measured without a limit, and clipped now
            else:
                self._mark_skipped()
                self._close_now()
        self._parts.append(stats)
        self._seen |= identities

    def take(self) -> GradStats | None:
        """What is held, as one; None if nothing is."""
        parts = self._parts
        self._forget()
        self._given = combined(parts) if parts else None
        return self._given

    def gave(self, stats: GradStats | None) -> bool:
        """Whether these statistics are what `take` returned last."""
        return stats is not None and stats is self._given

    def detach(self) -> None:
        """Listen to no further step."""
        for optimizer in self._optimizers:
            steps.unlisten(optimizer, self)

    def _forget(self) -> None:
        self._parts, self._seen, self._stepped = [], set(), set()

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Close what was clipped for this step."""
        if not self._parts:
            return
        self._stepped.add(id(optimizer))
        if len(self._stepped) == len(self._optimizers):
            self._close_now()

    #: Some frameworks clip inside optimizer.step(closure), after its beginning.
    after_step = before_step

    def _close_now(self) -> None:
        close = self._close()
        if close is not None:
            close()
        self._forget()

    def _only_measured(self) -> bool:
        """Whether nothing was clipped, and no optimizer that is known has stepped since."""
        unlimited = all(part.threshold in (None, math.inf) for part in self._parts)
        return unlimited and bool(self._optimizers) and not self._stepped

    def _mark_skipped(self) -> None:
        """No optimizer has stepped: of inf or NaN a GradScaler skips the step."""
        if self._optimizers and not self._stepped:
            for row, part in enumerate(self._parts):
                if part.skip_step is None:
                    self._parts[row] = dataclasses.replace(part, skip_step=part.nonfinite.sum() > 0)


def combined(parts: list[GradStats]) -> GradStats:
    """Statistics of disjoint sets of parameters, as of one. No synchronisation on one device."""
    head = parts[0]
    if len(parts) == 1:
        return head
    device = head.total_norm.device

    def rows(name: str) -> Tensor:
        return torch.cat([getattr(part, name).to(device, non_blocking=True) for part in parts])

    def scalars(name: str) -> Tensor | None:
        found = [value for part in parts if (value := getattr(part, name)) is not None]
        return torch.stack([value.to(device, non_blocking=True) for value in found]) if found else None

    norm = rows("norm")
    one_norm = all(part.l2_norm is part.norm for part in parts)
    totals, coefs, skips = scalars("total_norm"), scalars("clip_coef"), scalars("skip_step")
    assert totals is not None
    identities = tuple(identity for part in parts for identity in part._identities)
    return GradStats(
        names=tuple(name for part in parts for name in part.names),
        numel=tuple(n for part in parts for n in part.numel),
        has_grad=tuple(has for part in parts for has in part.has_grad),
        norm=norm,
        l2_norm=norm if one_norm else rows("l2_norm"),
        max_abs=rows("max_abs"),
        nonfinite=rows("nonfinite"),
        zeros=None if any(part.zeros is None for part in parts) else rows("zeros"),
        total_norm=_together(totals, head.norm_type),
        clip_coef=None if coefs is None else coefs.amin(),
        skip_step=None if skips is None else skips.any(),
        norm_type=head.norm_type,
        inv_scale=head.inv_scale,
        first=first_rows(identities),
        applied=head.applied,
        threshold=_common([part.threshold for part in parts]),
        _factor=None if coefs is None else torch.cat([_factors(part, device) for part in parts]),
        _identities=identities,
    )


def _factors(part: GradStats, device: torch.device) -> Tensor:
    if part._factor is not None:
        return part._factor.to(device, torch.float64, non_blocking=True)
    coef = 1.0 if part.clip_coef is None else part.clip_coef.to(device, torch.float64, non_blocking=True)
    return torch.ones(len(part), dtype=torch.float64, device=device) * coef


def _together(totals: Tensor, norm_type: float) -> Tensor:
    wide = totals if totals.device.type == "mps" else totals.double()
    total = wide.sum() if norm_type == 0 else torch.linalg.vector_norm(wide, norm_type)
    return total.to(totals.dtype)


def _common(thresholds: list[Any]) -> Any:
    """One limit for all, or None."""
    head = thresholds[0]
    same = all(limit is head or (isinstance(limit, float) and limit == head) for limit in thresholds)
    return head if same else None
