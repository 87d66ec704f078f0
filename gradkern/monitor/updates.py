"""‖w‖ and ‖Δw‖ / ‖w‖ of every parameter, every so often, from hooks around the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradkern.monitor.sample import Piece, Sample


class UpdateTracker:
    """Looks at the weights before and after an optimizer step when it is due.

    Args:
        optimizer: gets a pre-hook and a post-hook.
        params: the parameters as they are now.
        due: asked before each step.
        report: called after a step that was due, with exact, weight_norm [N], ratio [N] (float32,
            NaN for what has no plain memory); on the parameters' device. No synchronisation.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        params: Callable[[], Sequence[Tensor]],
        due: Callable[[], bool],
        report: Callable[[bool, Tensor, Tensor], None],
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
        for hook in self._hooks:
            hook.remove()
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
                self._report(self._sample.exact, *_norms(self._sample, before, self._sample.take(params)))


def _norms(sample: Sample, before: list[Piece], after: list[Piece]) -> tuple[Tensor, Tensor]:
    """(‖w‖, ‖Δw‖ / ‖w‖), each [N]; of a sample, ‖w‖ is scaled up to all elements."""
    home = before[0].values.device if len(before) == 1 else torch.device("cpu")
    norm = torch.full((len(sample.numel),), float("nan"), dtype=torch.float32, device=home)
    ratio = norm.clone()
    for old, new in zip(before, after):
        squares = old.sums(old.values.double().square())
        changes = old.sums((new.values.double() - old.values.double()).square())
        shares = [sample.numel[row] / max(n, 1) for row, n in zip(old.rows, old.lengths)]
        share = torch.tensor(shares, dtype=torch.float64).to(squares.device, non_blocking=True)
        rows = torch.tensor(old.rows).to(home, non_blocking=True)
        norm[rows] = (squares * share).sqrt().float().to(home)
        ratio[rows] = (changes / squares).sqrt().float().to(home)  # 0 / 0: NaN; x / 0: inf
    return norm, ratio
