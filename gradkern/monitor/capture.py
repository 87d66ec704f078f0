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

#: Nothing to wait for.
HERE = Arriving([], None, None, None)


class StepCapture:
    """One recorded step: its statistics where they are on the host already, else on their way.

    Made in the training loop, so it does as little as can be; `row` is for the writing thread.
    """

    __slots__ = ("arriving", "fields", "layout", "loss", "lr", "phase", "stats", "step", "time")

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
        self.step, self.time, self.layout, self.phase, self.stats = step, time, layout, phase, stats
        self.loss, self.lr = loss, lr
        self.arriving = HERE
        if not stats.norm.is_cpu or not stats.total_norm.is_cpu or isinstance(loss, Tensor):
            self.fields = _fields(stats, loss, lr)
            self.arriving = send(list(self.fields.values()), pool)
        else:  # learning rates of capturable optimizers are changed in place
            self.lr = tuple([rate.item() if isinstance(rate, Tensor) else rate for rate in lr])

    def nbytes(self) -> int:
        """Roughly what it holds."""
        return 24 * len(self.layout.names) + 1024

    def row(self, presence: Presence) -> Row:
        """The row, once arrived; the buffer may be released afterwards."""
        if self.arriving is HERE:
            value = _fields(self.stats, None, ())
        else:
            value = dict(zip(self.fields, self.arriving.tensors))
        absent = presence.absent(self.stats.has_grad)
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
            inv_scale=self.stats.inv_scale,
            lr=tuple(float(value.get(f"lr{i}", rate)) for i, rate in enumerate(self.lr)),
        )


def _fields(stats: GradStats, loss: Any, lr: tuple[Any, ...]) -> dict[str, Tensor]:
    """All tensors of a step, by what they are."""
    fields = {name: getattr(stats, name) for name in ("norm", "max_abs", "nonfinite", "total_norm")}
    if stats.l2_norm is not stats.norm:
        fields["l2_norm"] = stats.l2_norm
    for name in ("zeros", "clip_coef", "skip_step"):
        if getattr(stats, name) is not None:
            fields[name] = getattr(stats, name)
    if isinstance(loss, Tensor):
        fields["loss"] = loss.detach()
    fields.update({f"lr{i}": rate.detach() for i, rate in enumerate(lr) if isinstance(rate, Tensor)})
    return fields


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
