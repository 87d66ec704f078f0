"""`AutoClip`: limit the total norm to a percentile of the earlier norms."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from gradkern._util.warning import warn
from gradkern.clipping.policies.checks import Check, whole, within
from gradkern.clipping.policies.stateful import StepPolicy


class AutoClip(StepPolicy):
    """Limit the total norm to a percentile of the norms of earlier steps.

    Source: Seetharaman et al., "AutoClip: Adaptive gradient clipping for source separation networks", 2020.

    Norms are stored as they were before clipping, and the current norm does not count towards its own
    threshold. The first step is not clipped. This is what the package `autoclip` 0.2.1 does
    (``QuantileClip(global_threshold=True)``), except that norms that are not finite are not stored here.
    There a single NaN makes every later threshold NaN.

    Args:
        percentile: from 0 to 100, with linear interpolation. The default is that of the paper.
        window: number of latest norms to keep.

    Raises:
        TypeError, ValueError: an invalid argument.

    Warns:
        GradkernWarning: `percentile` is a fraction between 0 and 1, which is probably meant of 1, not of 100.
    """

    kind = "autoclip"
    _checks: ClassVar[Mapping[str, Check]] = {
        "percentile": partial(within, low=0.0, high=100.0),
        "window": partial(whole, least=1),
    }

    def __init__(self, percentile: float = 10.0, window: int = 1000) -> None:
        self.percentile = percentile
        if 0 < self.percentile < 1:
            meant = 100 * self.percentile
            warn(f"[AutoClip] percentile is {self.percentile:g} of 100; did you mean {meant:g}?")
        self.window = window

    def constants(self) -> tuple[float, ...]:
        return self.percentile, self.window

    def state_size(self, rows: int) -> int:
        return 1 + 2 * self.window
