"""From a step's statistics to a row of the history: what `record` keeps, and what the writer makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gradkern.monitor.columns import Layout
from gradkern.monitor.histogram import EXPONENTS, FORMATS
from gradkern.monitor.transfer import Arriving, PinnedPool, send
from gradkern.monitor.writer import HistogramRow, Row, StepRow, WeightsRow
from gradkern.stats import GradStats

_OPTIONAL = ("zeros", "clip_coef", "skip_step")


class StepCapture:
    """One recorded step, its tensors on their way."""

    __slots__ = (
        "_fields",
        "arriving",
        "has_grad",
        "inv_scale",
        "layout",
        "loss",
        "lr",
        "phase",
        "step",
        "time",
    )

    def __init__(
        self,
        step: int,
        time: float,
        layout: Layout,
        stats: GradStats,
        loss: float | Tensor | None,
        lr: tuple[float | Tensor, ...],
        phase: str,
        pool: PinnedPool,
    ) -> None:
        self.step, self.time, self.layout, self.phase = step, time, layout, phase
        self.has_grad, self.inv_scale = stats.has_grad, stats.inv_scale
        self.loss, self.lr = loss, lr
        self._fields = ["norm", "max_abs", "nonfinite", "total_norm"]
        tensors = [stats.norm, stats.max_abs, stats.nonfinite, stats.total_norm]
        if stats.l2_norm is not stats.norm:
            self._add("l2_norm", stats.l2_norm, tensors)
        for name in _OPTIONAL:
            value = getattr(stats, name)
            if value is not None:
                self._add(name, value, tensors)
        if isinstance(loss, Tensor):
            self._add("loss", loss.detach(), tensors)
        for i, value in enumerate(lr):
            if isinstance(value, Tensor):
                self._add(f"lr{i}", value.detach(), tensors)
        self.arriving: Arriving = send(tensors, pool)

    def _add(self, name: str, tensor: Tensor, tensors: list[Tensor]) -> None:
        self._fields.append(name)
        tensors.append(tensor)

    def nbytes(self) -> int:
        """Roughly what it holds."""
        return 24 * len(self.layout.names) + 1024

    def row(self, presence: Presence) -> Row:
        """The row, once arrived; the buffer may be released afterwards."""
        value: dict[str, Any] = dict(zip(self._fields, self.arriving.tensors))
        absent = presence.absent(self.has_grad)
        nonfinite = value["nonfinite"].numpy()
        zeros = value.get("zeros")
        coef, skip = value.get("clip_coef"), value.get("skip_step")
        loss = value.get("loss", self.loss)
        return StepRow(
            step=self.step,
            time=self.time,
            layout=self.layout,
            norm=_column(value["norm"], absent),
            max_abs=_column(value["max_abs"], absent),
            total_norm=float(value["total_norm"]),
            l2_norm=_column(value["l2_norm"], absent) if "l2_norm" in value else None,
            nonfinite=nonfinite.copy() if nonfinite.any() else None,
            zeros=None if zeros is None else zeros.numpy().copy(),
            loss=None if loss is None else float(loss),
            clip_coef=None if coef is None else float(coef),
            skipped=False if skip is None else bool(skip),
            phase=self.phase,
            inv_scale=self.inv_scale,
            lr=tuple(float(value.get(f"lr{i}", rate)) for i, rate in enumerate(self.lr)),
        )


class WeightsCapture:
    """Weight norms and update ratios on their way."""

    def __init__(
        self, step: int, layout: Layout, exact: bool, norm: Tensor, ratio: Tensor, pool: PinnedPool
    ) -> None:
        self.step, self.layout, self.exact = step, layout, exact
        self.arriving = send([norm, ratio], pool)

    def nbytes(self) -> int:
        return 8 * len(self.layout.names) + 1024

    def row(self, presence: Presence) -> Row:
        norm, ratio = (_column(t, None) for t in self.arriving.tensors)
        return WeightsRow(self.step, self.layout, self.exact, norm, ratio)


class HistogramCapture:
    """Histograms on their way."""

    def __init__(
        self, step: int, layout: Layout, counts: Tensor, underflow: Tensor, pool: PinnedPool
    ) -> None:
        self.step, self.layout = step, layout
        self.arriving = send([counts, underflow], pool)

    def nbytes(self) -> int:
        return (8 * len(EXPONENTS) + 4 * len(FORMATS)) * len(self.layout.names) + 1024

    def row(self, presence: Presence) -> Row:
        counts, underflow = (t.numpy().copy() for t in self.arriving.tensors)
        return HistogramRow(self.step, self.layout, counts, underflow)


Capture = StepCapture | WeightsCapture | HistogramCapture


@dataclass
class Presence:
    """Which parameters have no gradient: the same from step to step, mostly."""

    _last: tuple[bool, ...] = ()
    _absent: NDArray[np.int64] | None = None

    def absent(self, has_grad: tuple[bool, ...]) -> NDArray[np.int64] | None:
        """Their rows; None if there are none."""
        if has_grad != self._last:
            rows = np.flatnonzero(~np.array(has_grad, dtype=bool))
            self._absent = rows if len(rows) else None
            self._last = has_grad
        return self._absent


def _column(tensor: Tensor, absent: NDArray[np.int64] | None) -> NDArray[np.floating[Any]]:
    values: NDArray[np.floating[Any]] = tensor.numpy()
    values = values.copy()  # the tensor's memory is used again
    if absent is not None:
        values[absent] = -1
    return values
