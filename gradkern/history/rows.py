"""The rows that are written: values on the host, without tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradkern.history import format
from gradkern.history.layout import Layout

Floats = NDArray[np.floating[Any]]


#: Only this number of the latest events can be extended (`EventRow.extends`), to limit the search.
EXTENDABLE = 1000


class GroupValues(NamedTuple):
    """Statistics of a named group of parameters at one step; NaN where not known."""

    total_norm: float
    factor: float
    threshold: float


@dataclass
class StepRow:
    """A recorded step."""

    step: int
    time: float
    layout: Layout
    norm: Floats
    """[N]; -1 where there was no gradient."""
    max_abs: Floats
    total_norm: float
    l2_norm: Floats | None = None
    """None if it equals `norm`."""
    nonfinite: NDArray[np.int64] | None = None
    """None if all are zero."""
    zeros: NDArray[np.int64] | None = None
    loss: float | None = None
    clip_coef: float | None = None
    skipped: bool = False
    phase: str = "measured"
    inv_scale: float = 1.0
    lr: tuple[float, ...] = ()
    threshold: float | None = None
    """Norm above which the step was clipped; None if there was no limit."""
    factor: Floats | None = None
    """[N] what each gradient was multiplied by; None if it is `clip_coef` for all."""
    extra: dict[str, float] = field(default_factory=dict)
    groups: dict[str, GroupValues] = field(default_factory=dict)

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


@dataclass
class ZerosRow:
    """Zeros in a sample of the gradients of one step: a row of the table `looks`."""

    step: int
    layout: Layout
    nonzero: Floats
    """[N] fraction of the sampled elements that were non-zero up to this row; NaN where not known."""
    zeros: NDArray[np.int64]
    """[N] number of zero elements; -1 where not counted."""


@dataclass
class EventRow:
    """An event at a step."""

    step: int
    kind: str
    data: dict[str, Any]
    time: float
    extends: bool = False
    """Whether `data` replaces that of the earlier event with this step, kind and time."""


@dataclass
class AmendmentRow:
    """Numbers added to an earlier step; "loss" is its loss."""

    step: int
    values: dict[str, float]


@dataclass
class FactsRow:
    """Facts of the run by key; each replaces an earlier one."""

    step: int
    facts: dict[str, Any]


Row = StepRow | WeightsRow | HistogramRow | ZerosRow | EventRow | AmendmentRow | FactsRow


def rms_of(rows: Sequence[StepRow]) -> Floats:
    """[rows, N] root mean squares of rows of one layout; NaN where there was no gradient."""
    l2_norm = np.stack([row.norm if row.l2_norm is None else row.l2_norm for row in rows])
    with np.errstate(invalid="ignore", over="ignore"):
        rms = (l2_norm * rows[0].layout.inverse_roots).astype(np.float32, copy=False)
        rms[l2_norm < 0] = np.nan
    return rms
