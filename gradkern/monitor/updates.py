"""‖w‖ and ‖Δw‖ / ‖w‖ of every parameter, every so often, from hooks around the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradkern.monitor.hooks import take_off
from gradkern.monitor.sample import Part, Piece, Sample


class UpdateTracker:
    """Looks at the weights before and after an optimizer step when it is due.

    Args:
        optimizer: gets a pre-hook and a post-hook.
        params: the parameters as they are now.
        due: asked before each step.
        report: called after a step that was due, with the sample and, for each device, its rows and
            (norm of the sampled weights float64, ratio float32) there; rows without plain memory are
            in none. No synchronisation (see `Sample.take` for the first time).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        params: Callable[[], Sequence[Tensor]],
        due: Callable[[], bool],
        report: Callable[[Sample, list[Part]], None],
    ) -> None:
        self._params, self._due, self._report = params, due, report
        self._sample: Sample | None = None
        self._watched: list[int] = []
        self._before: list[Piece] | None = None
        self._hooks = [
            optimizer.register_step_pre_hook(self._pre),
            optimizer.register_step_post_hook(self._post),
        ]

    def remove(self) -> None:
        """Take the hooks off."""
        take_off(self._hooks)
        self._before = None

    @torch.no_grad()
    def _pre(self, *_: Any) -> None:
        self._before = None
        if not self._due():
            return
        params = list(self._params())
        identities = [id(p) for p in params]
        if self._sample is None or identities != self._watched:
            self._sample, self._watched = Sample(params), identities
        self._before = self._sample.take(params)

    @torch.no_grad()
    def _post(self, *_: Any) -> None:
        before, self._before = self._before, None
        if before is not None and self._sample is not None:
            params = list(self._params())
            if [id(p) for p in params] == self._watched:
                self._report(self._sample, _norms(before, self._sample.take(params)))


def _norms(before: list[Piece], after: list[Piece]) -> list[Part]:
    """(‖w‖, ‖Δw‖ / ‖w‖) of what was sampled, on each device."""
    parts: list[Part] = []
    for old, new in zip(before, after):
        squares = old.sums(old.values.double().square())
        changes = old.sums((new.values.double() - old.values.double()).square())
        ratio = (changes / squares).sqrt().float()  # 0 / 0: NaN; x / 0: inf
        parts.append((old.rows, (squares.sqrt(), ratio)))
    return parts
