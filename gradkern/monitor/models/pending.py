"""`PendingStep`: statistics that other code has collected, until their step is recorded."""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Callable, Iterable, Sequence

import torch

from gradkern.monitor.models.combine import clipped_again, combined, rest_of
from gradkern.params import steps
from gradkern.params.stats import GradStats


class PendingStep:
    """Collects the clips of one step, each of some or all parameters.

    The step is complete when every optimizer has stepped, or when a parameter comes a second time.

    Args:
        optimizers: those of the parameters; may be empty.
        complete: called with this object, to `take` and record; held weakly.
    """

    def __init__(
        self, optimizers: Sequence[torch.optim.Optimizer], complete: Callable[[PendingStep], None]
    ) -> None:
        self._optimizers = list(optimizers)
        self._complete = weakref.WeakMethod(complete)
        self._pieces: list[GradStats] = []
        self._taken: GradStats | None = None
        self._seen: set[int] = set()
        self._stepped: set[int] = set()
        #: Whether the norms are known to be those before clipping.
        self.before_clip = True
        # The monitor's other listeners come later: the step is recorded by the time they hear of it.
        for optimizer in self._optimizers:
            steps.listen(optimizer, self)

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def add(self, stats: GradStats, again: bool = False, before_clip: bool = True) -> None:
        """Add statistics. If a parameter is here already, the earlier ones are recorded first.

        Args:
            again: the gradients of parameters that are here already are those of before, only clipped. Their
                norms stay those before the first clip.
            before_clip: whether the norms are known to be those before clipping.
        """
        identities = set(stats._identities)
        if self.has_any(identities):
            if any(piece is stats for piece in self._pieces):
                return
            if again:
                return self._clip_again(stats, identities)
            if self._only_measured():
                self.drop()  # measured without a limit before, and clipped now
            else:
                self.end()
        self._pieces.append(stats)
        self._seen |= identities
        self.before_clip = self.before_clip and before_clip

    def _clip_again(self, stats: GradStats, identities: set[int]) -> None:
        """Take the limit of a further clip, and the rows of parameters that are not here yet."""
        for row, piece in enumerate(self._pieces):
            if identities.issuperset(piece._identities):
                self._pieces[row] = clipped_again(piece, stats)
        new = [row for row, identity in enumerate(stats._identities) if identity not in self._seen]
        if new:
            self._pieces.append(rest_of(stats, new))
            self._seen |= identities

    def has_any(self, identities: Iterable[int]) -> bool:
        """Whether statistics of one of these parameters are held."""
        return not self._seen.isdisjoint(identities)

    def take(self) -> GradStats | None:
        """All statistics that are held, combined; None if there are none."""
        pieces = self._pieces
        self.drop()
        self._taken = combined(pieces) if pieces else None
        return self._taken

    def gave(self, stats: GradStats | None) -> bool:
        """Whether `take` returned these statistics last."""
        return stats is not None and stats is self._taken

    def detach(self) -> None:
        """Stop listening to the optimizers."""
        for optimizer in self._optimizers:
            steps.unlisten(optimizer, self)

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer is about to step. The step is complete if its parameters are here and the others have
        stepped. Otherwise they may arrive within `optimizer.step(closure)`, where some frameworks clip."""
        owned = (id(p) for group in optimizer.param_groups for p in group["params"])
        if self._pieces and any(identity in self._seen for identity in owned):
            self.after_step(optimizer)

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer has stepped: with the last of them, the step is complete."""
        if not self._pieces:
            return
        self._stepped.add(id(optimizer))
        if len(self._stepped) == len(self._optimizers):
            self._complete_now()

    def end(self) -> None:
        """The step is over, also if not every optimizer has stepped."""
        self._mark_skipped()
        self._complete_now()

    def drop(self) -> None:
        """Forget what is held."""
        self._pieces, self._seen, self._stepped = [], set(), set()
        self.before_clip = True

    def _complete_now(self) -> None:
        complete = self._complete()
        if complete is not None:
            complete(self)
        self.drop()

    def _only_measured(self) -> bool:
        """Whether nothing was clipped, and no known optimizer has stepped since."""
        unlimited = all(_is_measurement(piece) for piece in self._pieces)
        return unlimited and bool(self._optimizers) and not self._stepped

    def _mark_skipped(self) -> None:
        """No optimizer has stepped: a GradScaler skips a step with inf or NaN."""
        if self._optimizers and not self._stepped:
            for row, piece in enumerate(self._pieces):
                if piece.skip_step is None:
                    self._pieces[row] = dataclasses.replace(piece, skip_step=piece.nonfinite.sum() > 0)


def _is_measurement(stats: GradStats) -> bool:
    """Whether the gradients were only read. A clip of elements has no coefficient, but was applied."""
    unlimited = isinstance(stats.threshold, float) and stats.threshold == math.inf
    return unlimited or (stats.clip_coef is None and not stats.applied)
