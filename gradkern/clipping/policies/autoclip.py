"""`AutoClip`: the threshold is a percentile of the norms so far."""

from __future__ import annotations

from gradkern.clipping.policies.checks import at_least, within
from gradkern.clipping.policies.stateful import StepPolicy


class AutoClip(StepPolicy):
    """Scale all gradients to the `percentile` of the norms before them.

    Seetharaman et al., "AutoClip: Adaptive gradient clipping for source separation networks", 2020. As the
    package `autoclip` 0.2.1 (``QuantileClip(global_threshold=True)``): the threshold is taken before the new
    norm is remembered, norms are remembered as they were before clipping, and the first step is not limited.
    Unlike there, a norm that is not finite is not remembered: with one NaN every later threshold was NaN.

    Args:
        percentile: from 0 to 100, with linear interpolation; the paper's 10.
        window: how many of the latest norms are remembered.
    """

    kind = "autoclip"

    def __init__(self, percentile: float = 10.0, window: int = 1000) -> None:
        self.percentile = within("AutoClip", "percentile", percentile, 0.0, 100.0)
        self.window = int(at_least("AutoClip", "window", window, 1))

    def constants(self) -> tuple[float, ...]:
        return self.percentile, self.window

    def state_size(self, rows: int) -> int:
        return 1 + 2 * self.window
