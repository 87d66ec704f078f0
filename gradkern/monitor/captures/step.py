"""`StepCapture`: the statistics of one recorded step on their way to the host."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gradkern.history.layout import Layout
from gradkern.history.rows import GroupValues, StepRow
from gradkern.monitor.captures.capture import Extra, Presence, extra_numbers
from gradkern.monitor.captures.transfer import HERE, PinnedPool, send
from gradkern.params.stats import GradStats


class StepCapture:
    """One recorded step: its statistics, on the host already or on their way.

    It is built on the training thread between backward and the optimizer step, where the code is not in the
    processor's caches. Therefore it does as little as possible there.

    Args:
        loss: a float, or a tensor of one element on a device; None if not given.
        lr: floats, or 0-d tensors on a device.
        extra: the caller's numbers; those on a device as tensors.
    """

    __slots__ = ("arriving", "extra", "fields", "layout", "loss", "lr", "phase", "stats", "step", "time")
    is_step = True

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
        return self.layout.row_bytes

    def row(self, presence: Presence) -> StepRow:
        if self.arriving is HERE:
            value = _fields(self.stats, None, self.lr, {})
        else:
            value = dict(zip(self.fields, self.arriving.tensors))
        absent = presence.absent(self.stats.has_grad)
        reused = self.arriving is not HERE  # pinned memory goes back to the pool
        nonfinite = value["nonfinite"].numpy()
        zeros = value.get("zeros")
        coef, skip, factor = value.get("clip_coef"), value.get("skip_step"), value.get("factor")
        loss = value.get("loss", self.loss)
        return StepRow(
            step=self.step,
            time=self.time,
            layout=self.layout,
            norm=_column(value["norm"], absent, reused),
            max_abs=_column(value["max_abs"], absent, reused),
            total_norm=float(value["total_norm"]),
            l2_norm=_column(value["l2_norm"], absent, reused) if "l2_norm" in value else None,
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
            extra=extra_numbers(list(value), list(value.values()), self.extra),
            groups=_groups(value, self.stats),
        )


def _fields(stats: GradStats, loss: Any, lr: list[Any], extra: Extra) -> dict[str, Tensor]:
    """All tensors of a step by name."""
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
    """The numbers of each named group."""

    def one(name: str, group: str, given: Any) -> float:
        limit = _threshold(value.get(f"{name} of {group}", given))
        return math.nan if limit is None else limit

    return {
        group: GroupValues(*(one(name, group, getattr(of, name)) for name in GroupValues._fields))
        for group, of in stats.groups.items()
    }


def _threshold(limit: float | Tensor | None) -> float | None:
    """The limit, if it is finite and the same for all rows; else None."""
    if limit is None or (isinstance(limit, Tensor) and limit.dim()):
        return None
    number = float(limit)
    return number if math.isfinite(number) else None


def _column(tensor: Tensor, absent: NDArray[np.int64] | None, reused: bool) -> NDArray[np.floating[Any]]:
    """The values on the host, -1 where there was no gradient."""
    values: NDArray[np.floating[Any]] = tensor.numpy()
    if reused or absent is not None:
        values = values.copy()
    if absent is not None:
        values[absent] = -1
    return values
