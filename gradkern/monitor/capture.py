"""From a step's statistics to a row of the history: what `record` keeps, and what the writer makes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gradkern.history.format import EXPONENTS, FORMATS
from gradkern.history.layout import Layout
from gradkern.history.rows import AmendmentRow, GroupValues, HistogramRow, LookRow, Row, StepRow, WeightsRow
from gradkern.monitor.sample import Part
from gradkern.monitor.transfer import HERE, PinnedPool, send
from gradkern.params.stats import GradStats

#: The caller's numbers of a step by name; those on a device as tensors.
Extra = dict[str, float | Tensor]


class StepCapture:
    """One recorded step: its statistics where they are on the host already, else on their way.

    Made in the training loop, between backward and the optimizer's step, where all code is cold in
    the processor's caches: it does as little as can be. `row` is for the writing thread.

    Args:
        loss: a float, or a tensor of one element on a device; None if not given.
        lr: floats, or 0-d tensors on a device.
        extra: the caller's numbers; those on a device as tensors.
    """

    __slots__ = ("arriving", "extra", "fields", "layout", "loss", "lr", "phase", "stats", "step", "time")

    def __init__(
        self,
        step: int,
        time: float,
        layout: Layout,
        stats: GradStats,
        loss: float | Tensor | None,
        lr: list[float | Tensor],
        phase: str,
        pool: PinnedPool,
        extra: Extra | None = None,
    ) -> None:
        self.step, self.time, self.layout, self.phase, self.stats = step, time, layout, phase, stats
        self.loss, self.lr, self.extra = loss, lr, extra or {}
        here = stats.norm.is_cpu and stats.total_norm.is_cpu and (type(loss) is float or loss is None)
        if here and not any(isinstance(value, Tensor) for value in self.extra.values()):
            self.arriving = HERE
        else:
            self.fields = _fields(stats, loss, lr, self.extra)
            self.arriving = send(list(self.fields.values()), pool)

    def nbytes(self) -> int:
        """Roughly what it holds."""
        return self.layout.row_bytes

    def row(self, presence: Presence) -> Row:
        """The row, once arrived; the buffer may be released afterwards."""
        if self.arriving is HERE:
            value = _fields(self.stats, None, self.lr, {})
        else:
            value = dict(zip(self.fields, self.arriving.tensors))
        absent = presence.absent(self.stats.has_grad)
        used_again = self.arriving is not HERE  # the pinned memory
        nonfinite = value["nonfinite"].numpy()
        zeros = value.get("zeros")
        coef, skip, factor = value.get("clip_coef"), value.get("skip_step"), value.get("factor")
        loss = value.get("loss", self.loss)
        return StepRow(
            step=self.step,
            time=self.time,
            layout=self.layout,
            norm=_column(value["norm"], absent, used_again),
            max_abs=_column(value["max_abs"], absent, used_again),
            total_norm=float(value["total_norm"]),
            l2_norm=_column(value["l2_norm"], absent, used_again) if "l2_norm" in value else None,
            nonfinite=nonfinite.copy() if nonfinite.any() else None,
            zeros=None if zeros is None else zeros.numpy().copy(),
            loss=None if loss is None else float(loss),
            clip_coef=None if coef is None else float(coef),
            skipped=False if skip is None else bool(skip),
            phase=self.phase,
            inv_scale=float(value.get("inv_scale", self.stats.inv_scale)),
            lr=tuple([float(value.get(f"lr{i}", rate)) for i, rate in enumerate(self.lr)]),
            threshold=_threshold(value.get("threshold", self.stats.threshold)),
            factor=None if factor is None else factor.numpy().astype(np.float32),
            extra=_extra(value, self.extra),
            groups=_groups(value, self.stats),
        )


def _fields(stats: GradStats, loss: Any, lr: list[Any], extra: Extra) -> dict[str, Tensor]:
    """All tensors of a step, by what they are."""
    fields = {"norm": stats.norm, "max_abs": stats.max_abs, "nonfinite": stats.nonfinite}
    fields["total_norm"] = stats.total_norm
    if stats.l2_norm is not stats.norm:
        fields["l2_norm"] = stats.l2_norm
    for name in ("zeros", "clip_coef", "skip_step", "inv_scale", "threshold"):
        value = getattr(stats, name)
        if isinstance(value, Tensor):
            fields[name] = value
    if stats._factor is not None:
        fields["factor"] = stats._factor
    for group, of in stats.groups.items():
        for name in ("total_norm", "factor", "threshold"):
            value = getattr(of, name)
            if isinstance(value, Tensor):
                fields[f"{name} of {group}"] = value
    if isinstance(loss, Tensor):
        fields["loss"] = loss.detach()
    fields.update({f"lr{i}": rate.detach() for i, rate in enumerate(lr) if isinstance(rate, Tensor)})
    fields.update({f"extra {name}": value for name, value in extra.items() if isinstance(value, Tensor)})
    return fields


def _groups(value: Mapping[str, Tensor], stats: GradStats) -> dict[str, GroupValues]:
    """What the step says of each named group."""

    def one(name: str, group: str, given: Any) -> float:
        limit = _threshold(value.get(f"{name} of {group}", given))
        return math.nan if limit is None else limit

    return {
        group: GroupValues(*(one(name, group, getattr(of, name)) for name in GroupValues._fields))
        for group, of in stats.groups.items()
    }


def _threshold(limit: float | Tensor | None) -> float | None:
    """One finite limit; None where there is none, or each row has its own."""
    if limit is None or (isinstance(limit, Tensor) and limit.dim()):
        return None
    number = float(limit)
    return number if math.isfinite(number) else None


def _extra(value: Mapping[str, Tensor], extra: Extra) -> dict[str, float]:
    """The caller's numbers; a tensor of several elements is a number for each."""
    found: dict[str, float] = {}
    for name, given in extra.items():
        if not isinstance(given, Tensor):
            found[name] = given
        elif given.numel() == 1:
            found[name] = float(value[f"extra {name}"])
        else:
            numbers = value[f"extra {name}"].reshape(-1).tolist()
            found.update({f"{name}/{i}": float(number) for i, number in enumerate(numbers)})
    return found


class AmendmentCapture:
    """Numbers of an earlier step on their way."""

    def __init__(self, step: int, values: Extra, pool: PinnedPool) -> None:
        self.step, self._values = step, values
        tensors = {f"extra {name}": value for name, value in values.items() if isinstance(value, Tensor)}
        self._names = list(tensors)
        self.arriving = send(list(tensors.values()), pool) if tensors else HERE

    def nbytes(self) -> int:
        """Roughly what it holds."""
        return 1024

    def row(self, presence: Presence) -> Row:
        """The row, once arrived."""
        return AmendmentRow(self.step, _extra(dict(zip(self._names, self.arriving.tensors)), self._values))


class PartsCapture:
    """Columns of some parameters each, from several devices, on their way."""

    columns: tuple[tuple[int, Any, Any], ...]
    """(entries a row, type, what stands where nothing is known) of each column."""

    def __init__(self, step: int, layout: Layout, parts: list[Part], pool: PinnedPool) -> None:
        self.step, self.layout = step, layout
        self._rows = [rows for rows, _ in parts]
        self.arriving = send([tensor for _, tensors in parts for tensor in tensors], pool)

    def nbytes(self) -> int:
        """Roughly what it holds."""
        return sum(8 * width for width, _, _ in self.columns) * len(self.layout.names) + 1024

    def gathered(self) -> list[NDArray[Any]]:
        """[N] or [N, width] of each column; copies."""
        tensors = iter(self.arriving.tensors)
        shapes = [(len(self.layout.names), width)[: 1 + (width > 1)] for width, _, _ in self.columns]
        found = [np.full(shape, fill, dtype=kind) for shape, (_, kind, fill) in zip(shapes, self.columns)]
        for rows in self._rows:
            for column in found:
                column[rows] = next(tensors).numpy()
        return found


class WeightsCapture(PartsCapture):
    """Weight norms and update ratios on their way."""

    columns = ((1, np.float64, np.nan), (1, np.float32, np.nan))

    def __init__(
        self,
        step: int,
        layout: Layout,
        exact: bool,
        factors: list[float],
        parts: list[Part],
        pool: PinnedPool,
    ) -> None:
        super().__init__(step, layout, parts, pool)
        self._exact, self._factors = exact, factors

    def row(self, presence: Presence) -> Row:
        """The row, once arrived."""
        norm, ratio = self.gathered()
        norm = (norm * self._factors).astype(np.float32)
        return WeightsRow(self.step, self.layout, self._exact, norm, ratio)


class HistogramCapture(PartsCapture):
    """Histograms on their way."""

    columns = ((len(EXPONENTS), np.int64, 0), (len(FORMATS), np.float32, np.nan))

    def row(self, presence: Presence) -> Row:
        """The row, once arrived."""
        return HistogramRow(self.step, self.layout, *self.gathered())


class LookCapture(PartsCapture):
    """Zero counts and fractions of ever non-zero elements on their way."""

    columns = ((1, np.float32, np.nan), (1, np.int64, -1))

    def row(self, presence: Presence) -> Row:
        """The row, once arrived."""
        return LookRow(self.step, self.layout, *self.gathered())


class HostCapture:
    """A row that is on the host already."""

    arriving = HERE

    def __init__(self, row: Row) -> None:
        self._row, self.step = row, row.step

    def nbytes(self) -> int:
        """Roughly what it holds."""
        return 1024

    def row(self, presence: Presence) -> Row:
        """The row."""
        return self._row


Capture = StepCapture | WeightsCapture | HistogramCapture | LookCapture | AmendmentCapture | HostCapture


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


def _column(tensor: Tensor, absent: NDArray[np.int64] | None, used_again: bool) -> NDArray[np.floating[Any]]:
    values: NDArray[np.floating[Any]] = tensor.numpy()
    if used_again or absent is not None:
        values = values.copy()
    if absent is not None:
        values[absent] = -1
    return values
