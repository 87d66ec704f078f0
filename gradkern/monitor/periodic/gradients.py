"""Periodic statistics of gradients: zero counts, elements that were ever non-zero, histograms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gradkern.monitor.captures.transfer import PinnedPool
from gradkern.monitor.models.layouts import Layouts, Plan
from gradkern.monitor.periodic.capture import HistogramCapture, ZerosCapture
from gradkern.monitor.periodic.histogram import histogram
from gradkern.monitor.periodic.schedule import is_due
from gradkern.monitor.sample import DeviceColumns, Piece, Sample
from gradkern.params.stats import GradStats


class PeriodicGradients:
    """Periodic statistics from a sample of the gradients.

    Args:
        every: as in `is_due`.
        histogram_every: take a histogram at each multiple; 0 for never; None for the steps that are due below
            `every`.
        submit: takes the captures.
    """

    def __init__(
        self,
        plan: Plan,
        layouts: Layouts,
        every: int,
        histogram_every: int | None,
        pool: PinnedPool,
        submit: Callable[[ZerosCapture | HistogramCapture], None],
    ) -> None:
        self._plan, self._layouts, self._pool, self._submit = plan, layouts, pool, submit
        self._every, self._histogram_every = every, histogram_every
        self._sample: Sample | None = None
        self._sampled: tuple[str, ...] = ()
        self._ever: dict[int, Tensor] = {}

    def due(self, step: int) -> bool:
        """Whether `capture` should be called at that step."""
        return is_due(step, self._every) or self._histogram_due(step)

    def _histogram_due(self, step: int) -> bool:
        if self._histogram_every is None:
            return is_due(step, self._every) and step < self._every
        return bool(self._histogram_every) and step % self._histogram_every == 0

    @torch.no_grad()
    def capture(self, step: int, stats: GradStats) -> None:
        """Sample the current gradients. The histogram is that of gradients before clipping. No
        synchronisation, except as in `Sample.take`."""
        params = self._plan.current()
        if self._sample is None or self._sampled is not self._plan.names:
            self._sample, self._sampled = Sample(params, vectors_whole=True), self._plan.names
            self._ever.clear()
        grads = [p.grad for p in params]
        if is_due(step, self._every):
            parts = [self._of_piece(piece, params) for piece in self._sample.take(grads)]
            self._submit(ZerosCapture(step, self._layouts.own(), parts, self._pool))
        if self._histogram_due(step):
            coef, scale = (stats.clip_coef, 1.0) if stats.applied else (None, stats.inv_scale)
            counts = histogram(grads, self._sample, coef, scale)
            self._submit(HistogramCapture(step, self._layouts.own(), counts, self._pool))

    def _of_piece(self, piece: Piece, params: list[Tensor]) -> DeviceColumns:
        """Fractions that were ever non-zero, and zero counts of vectors of which every element is sampled."""
        nonzero = piece.values != 0
        parts = torch.split(nonzero, piece.counts)
        for row, now in zip(piece.rows, parts):
            before = self._ever.get(row)
            self._ever[row] = now if before is None or before.shape != now.shape else before | now
        ever = piece.sums(torch.cat([self._ever[row] for row in piece.rows])) / piece.lengths
        whole = [
            params[row].dim() == 1 and params[row].numel() == n for row, n in zip(piece.rows, piece.counts)
        ]
        counted = torch.tensor(whole, device="cpu").to(nonzero.device, non_blocking=True)
        zeros = torch.where(counted, piece.lengths - piece.sums(nonzero).long(), -1)
        return piece.rows, (ever.float(), zeros)
