"""`UpdateTracker`: ‖w‖ and ‖Δw‖ / ‖w‖ of every parameter around an optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradkern.monitor.sample import DeviceColumns, Piece, Sample


class UpdateTracker:
    """Compares samples of the weights before and after a step. No synchronisation (but see `Sample.take`).

    Args:
        params: returns the current parameters.
    """

    def __init__(self, params: Callable[[], Sequence[Tensor]]) -> None:
        self._params = params
        self._watched: list[int] = []
        self._before: list[Piece] = []
        self.sample = Sample([])

    @torch.no_grad()
    def before(self) -> None:
        """Sample the weights before the step."""
        params = list(self._params())
        identities = [id(p) for p in params]
        if identities != self._watched:
            self.sample, self._watched = Sample(params), identities
        self._before = self.sample.take(params)

    @torch.no_grad()
    def after(self) -> list[DeviceColumns] | None:
        """For each device its rows, and there (norm of the sampled weights, float64; ratio, float32).

        Rows that cannot be sampled are left out. None if the parameters were replaced in the step.
        """
        params = list(self._params())
        if [id(p) for p in params] != self._watched:
            return None
        return _norms(self._before, self.sample.take(params))


def _norms(before: list[Piece], after: list[Piece]) -> list[DeviceColumns]:
    """(‖w‖, ‖Δw‖ / ‖w‖) of the samples, on each device."""
    parts: list[DeviceColumns] = []
    for old, new in zip(before, after):
        squares = old.sums(old.values.double().square())
        changes = old.sums((new.values.double() - old.values.double()).square())
        ratio = (changes / squares).sqrt().float()  # 0 / 0: NaN; x / 0: inf
        parts.append((old.rows, (squares.sqrt(), ratio)))
    return parts
