"""What is written: rows of host values. Nothing here knows of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradkern.history import format
from gradkern.history.layout import Layout

Floats = NDArray[np.floating[Any]]


@dataclass
class StepRow:
    """What one recorded step says, on the host."""

    step: int
    time: float
    layout: Layout
    norm: Floats
    """[N]; -1 where there was no gradient."""
    max_abs: Floats
    total_norm: float
    l2_norm: Floats | None = None
    """None where it is `norm`."""
    nonfinite: NDArray[np.int64] | None = None
    """None if all are zero."""
    zeros: NDArray[np.int64] | None = None
    loss: float | None = None
    clip_coef: float | None = None
    skipped: bool = False
    phase: str = "measured"
    inv_scale: float = 1.0
    lr: tuple[float, ...] = ()

    def rms(self) -> Floats:
        """[N] root mean square; NaN where there was no gradient."""
        return rms_of([self])[0]

    @property
    def flags(self) -> int:
        bits = format.HAS_LOSS * (self.loss is not None) + format.HAS_COEF * (self.clip_coef is not None)
        return bits + format.SKIPPED * self.skipped + (format.PHASES.index(self.phase) << format.PHASE_SHIFT)


@dataclass
class WeightsRow:
    """Weight norms and update ratios around one optimizer step."""

    step: int
    layout: Layout
    exact: bool
    weight_norm: Floats
    ratio: Floats


@dataclass
class HistogramRow:
    """log2 histograms of one step: counts [N, B], underflow fractions [N, formats]."""

    step: int
    layout: Layout
    counts: NDArray[np.int64]
    underflow: Floats


Row = StepRow | WeightsRow | HistogramRow


def rms_of(rows: Sequence[StepRow]) -> Floats:
    """[rows, N] root mean squares of rows of one layout; NaN where there was no gradient."""
    l2_norm = np.stack([row.norm if row.l2_norm is None else row.l2_norm for row in rows])
    with np.errstate(invalid="ignore", over="ignore"):
        rms = (l2_norm * rows[0].layout.inverse_roots).astype(np.float32, copy=False)
        rms[l2_norm < 0] = np.nan
    return rms
