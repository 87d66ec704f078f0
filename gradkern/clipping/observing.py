"""`observer`: what clips are reported to, if anything. Set by a layer above (`integrations.bridge`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from gradkern.params.stats import GradStats


class Report(Protocol):
    """Takes the statistics of a clip that has been made.

    Args:
        stats: those from before the clip, one row per parameter. `clip_coef` or `applied` tells that
            gradients were changed.
        total: the total norm that the caller of the clip gave, 0-d float64.
    """

    def __call__(self, stats: GradStats, total: Tensor | None = None) -> None: ...


#: Called with the parameters of each clip, before it. Returns where to report it; None for nowhere.
observer: Callable[[Sequence[Tensor]], Report | None] | None = None


def observed(params: Sequence[Tensor]) -> Report | None:
    """Where to report the clip of these parameters that is about to be made; None for nowhere.

    Clips inside a compiled graph are not reported.
    """
    return None if observer is None or torch.compiler.is_compiling() else observer(params)
