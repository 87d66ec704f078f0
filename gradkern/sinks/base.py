"""What sinks are, and what they are sent: a bounded payload, never thousands of charts."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradkern.history.rows import Row, StepRow, WeightsRow
from gradkern.sinks.heatmap import Heatmap

CLIP_WINDOW = 100
#: What stands behind "grad_norm" and "grad_rms", by phase.
ENDINGS = {"before_clip": "", "measured": "_measured", "after_clip": "_after_clip"}


def apart(key: str) -> str:
    """The key where other people's numbers are: a training loop logs its own ``loss`` and ``lr``."""
    return f"gradkern/{key}" if key in ("loss", "lr") else key


class Sink:
    """Where a monitor sends its numbers besides the history. Called from the monitor's own thread.

    Args:
        every: send the steps whose number is a multiple of `every`; where one was passed without
            being recorded, the next that was (not before the first step that this monitor records).
            A step that is recorded again is sent again. Update ratios, rare already, are all sent
            (``GradMonitor(update_every=)``).
        top: how many parameters with the largest rms, and how many with the smallest, are sent by
            themselves (by update ratio, if one comes before the first step that is sent). A
            parameter once sent is sent from then on; at most ``4 * top`` ever are.
        all_params: send every parameter instead. Thousands of charts make a web page unusable.
        heatmap_every: send the heatmap (log10 rms, parameters × steps) each so many sent steps;
            0 for never.

    Keys: ``grad_norm`` (total, before clipping), ``grad_norm/<param>``, ``grad_rms/<param>``,
    ``update_ratio/<param>``, ``clip/rate`` (of the last 100 recorded steps), ``clip/coef``, ``loss``,
    ``lr``, ``grad_nonfinite``. Norms of which the caller said that they are from after clipping are
    called ``grad_norm_after_clip``, ``grad_rms_after_clip``; those of which nobody said anything
    (`record` measured them, without ``after_clip=``) ``grad_norm_measured``, ``grad_rms_measured``.
    """

    _in_use = False  # by a monitor

    def __init__(
        self, *, every: int = 1, top: int = 8, all_params: bool = False, heatmap_every: int = 100
    ) -> None:
        name = type(self).__name__
        for key, value, least in (("every", every, 1), ("top", top, 0), ("heatmap_every", heatmap_every, 0)):
            if value < least:
                raise ValueError(f"[{name}] {key}: expected at least {least}, got {value}")
        self.every, self.top, self.all_params, self.heatmap_every = every, top, all_params, heatmap_every

    def open(self, run_dir: Path) -> None:
        """Called once, before anything is recorded, in the thread that makes the monitor."""

    def begin_at(self, step: int) -> None:
        """Called with the first step, and with one that the run goes back to, sent or not: what there is
        of it and of later ones is replaced by what comes. Nothing need be done."""

    def log(self, step: int, time: float, values: dict[str, float]) -> None:
        """Numbers of one step; values may be NaN or infinite. The update ratios of a step come in a
        call of their own, before or after the others, and maybe some steps late."""
        raise NotImplementedError

    def image(self, step: int, key: str, png: bytes) -> None:
        """A picture; sinks that cannot show one leave it."""

    def close(self) -> None:
        """Called once, after the last step."""


class _Selection:
    """The parameters that one sink is sent, and its payloads."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.clipped: deque[bool] = deque(maxlen=CLIP_WINDOW)
        self.tracked: dict[str, None] = {}
        self.heatmap = Heatmap()
        self.begun = False
        self.last: int | None = None
        self.due = False
        self.sent = 0

    def follow(self, row: Row) -> None:
        """Tell where the run begins and goes back; as in the history, no row that comes late goes back."""
        back = isinstance(row, StepRow) and self.last is not None and row.step <= self.last
        if back or not self.begun:
            self.begun = True
            self.sink.begin_at(row.step)

    def add_step(self, row: StepRow) -> None:
        if row.clip_coef is not None:
            self.clipped.append(not row.clip_coef >= 1)
        if not self._due(row.step):
            return
        rms = row.rms()
        if self.sink.heatmap_every:
            sick = row.nonfinite is not None and row.nonfinite > 0
            self.heatmap.add(row.step, row.layout.names, np.where(sick, np.inf, rms))
        self.sink.log(row.step, row.time, self._values(row, rms))
        self.sent += 1
        if self.sink.heatmap_every and self.sent % self.sink.heatmap_every == 0:
            self.sink.image(row.step, "grad_rms_heatmap", self.heatmap.png())

    def add_weights(self, row: WeightsRow) -> None:
        names = row.layout.names
        if not self.tracked:
            self._track(names, row.ratio)
        ratios = {
            f"update_ratio/{names[i]}": float(row.ratio[i])
            for i in self._wanted(names)
            if not np.isnan(row.ratio[i])
        }
        if ratios:
            self.sink.log(row.step, time.time(), ratios)

    def _due(self, step: int) -> bool:
        """Whether the step is a multiple of `every`, or the first recorded behind one."""
        before, self.last = self.last, step
        if step != before:  # one recorded again is due as it was
            passed = before is not None and step // self.sink.every > before // self.sink.every
            self.due = passed or step % self.sink.every == 0
        return self.due

    def _values(self, row: StepRow, rms: NDArray[Any]) -> dict[str, float]:
        ending = ENDINGS[row.phase]
        values = {f"grad_norm{ending}": row.total_norm}
        if row.loss is not None:
            values["loss"] = row.loss
        if row.lr:
            values["lr"] = row.lr[0]
        if row.clip_coef is not None:
            values["clip/coef"] = row.clip_coef
            values["clip/rate"] = sum(self.clipped) / len(self.clipped)
        values["grad_nonfinite"] = 0.0 if row.nonfinite is None else float(row.nonfinite.sum())
        names = row.layout.names
        self._track(names, rms)
        for i in self._wanted(names):
            if row.norm[i] >= 0 or math.isnan(row.norm[i]):  # -1: no gradient
                values[f"grad_norm{ending}/{names[i]}"] = float(row.norm[i])
                values[f"grad_rms{ending}/{names[i]}"] = float(rms[i])
        return values

    def _track(self, names: tuple[str, ...], values: NDArray[Any]) -> None:
        """Take in the parameters with the largest and smallest values, while there is room."""
        top, room = self.sink.top, 4 * self.sink.top - len(self.tracked)
        if room <= 0 or self.sink.all_params:
            return
        known = np.flatnonzero(np.isfinite(values))
        order = known[np.argsort(values[known], kind="stable")]
        for i in [*order[::-1][:top], *order[:top]]:
            if names[i] not in self.tracked and room > 0:
                self.tracked[names[i]] = None
                room -= 1

    def _wanted(self, names: tuple[str, ...]) -> Sequence[int]:
        if self.sink.all_params:
            return range(len(names))
        at = {name: i for i, name in enumerate(names) if name in self.tracked}
        return [at[name] for name in self.tracked if name in at]


def _open(sink: Sink, run_dir: Path) -> None:
    name = type(sink).__name__
    if sink._in_use:
        raise ValueError(
            f"[GradMonitor] sinks: expected a sink for each monitor, got a {name} that is in use already"
        )
    try:
        sink.open(run_dir)
    except Exception as error:
        raise RuntimeError(f"[GradMonitor] sinks: {name}.open() failed: {error!r}") from error
    sink._in_use = True


class SinkFeed:
    """All sinks of a monitor. One that fails is left out from then on; the others go on."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._selections = [_Selection(sink) for sink in sinks]

    def open(self, run_dir: Path) -> None:
        """Before anything is sent.

        Raises:
            RuntimeError: a sink cannot be opened; those before it are closed.
            ValueError: a sink is in use already.
        """
        wanted, self._selections = self._selections, []
        try:
            for selection in wanted:
                _open(selection.sink, run_dir)
                self._selections.append(selection)
        except BaseException:
            self.close()  # those before it
            raise

    def send(self, rows: Sequence[Row]) -> list[str]:
        """Committed rows to every sink; returns what is to be warned of."""
        problems = []
        for selection in list(self._selections):
            try:
                for row in rows:
                    selection.follow(row)
                    if isinstance(row, StepRow):
                        selection.add_step(row)
                    elif isinstance(row, WeightsRow):
                        selection.add_weights(row)
            except Exception as error:  # somebody else's package, somebody else's network
                self._selections.remove(selection)
                selection.sink._in_use = False
                problems.append(
                    f"[GradMonitor] {type(selection.sink).__name__} failed and is left out from now on: "
                    f"{error!r}. The history goes on."
                )
        return problems

    def close(self) -> None:
        for selection in self._selections:
            selection.sink._in_use = False
            try:
                if selection.sink.heatmap_every and selection.sent % selection.sink.heatmap_every:
                    selection.sink.image(
                        selection.heatmap.last_step, "grad_rms_heatmap", selection.heatmap.png()
                    )
                selection.sink.close()
            except Exception as error:
                import warnings

                warnings.warn(
                    f"[GradMonitor] {type(selection.sink).__name__}.close() failed: {error!r}",
                    RuntimeWarning,
                    stacklevel=2,
                )
