"""`Sink`, the base class of loggers, and `SinkFeed`, which sends each of them a bounded amount of data."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradkern._util.warning import warn
from gradkern.history.rows import EventRow, Row, StepRow, WeightsRow
from gradkern.sinks.heatmap import Heatmap

CLIP_WINDOW = 100
#: Suffix of "grad_norm" and "grad_rms" for each phase.
ENDINGS = {"before_clip": "", "measured": "_measured", "after_clip": "_after_clip"}


def apart(key: str) -> str:
    """The key to use in a run that the training loop may log its own ``loss`` and ``lr`` to."""
    return f"gradkern/{key}" if key in ("loss", "lr") else key


class Sink:
    """Base class of loggers that a monitor sends its numbers to.

    Implement `log`; the other methods are optional. All but `open` are called from the monitor's writing
    thread. If a method raises, the sink is removed with a warning and recording continues.

    Args:
        every: send every `every`-th step. If such a step is not recorded, the next recorded one is sent
            instead. Update ratios and events are always sent.
        top: send the `top` parameters with the largest rms and the `top` with the smallest. A parameter that
            was sent once is sent from then on, up to ``4 * top`` parameters.
        all_params: send every parameter instead. Thousands of charts make a web page unusable.
        heatmap_every: send the heatmap (log10 rms, parameters × steps) each time this many steps were sent; 0
            for never.

    Raises:
        ValueError: a number is too small.

    Notes:
        The keys are ``grad_norm`` (total norm before clipping), ``grad_norm/<param>``, ``grad_rms/<param>``,
        ``update_ratio/<param>``, ``clip/rate`` (of the last 100 recorded steps), ``clip/coef``, ``loss``,
        ``lr`` and ``grad_nonfinite``. Norms after clipping have the keys ``grad_norm_after_clip`` and
        ``grad_rms_after_clip``. Norms that `record` measured without ``after_clip=`` have the keys
        ``grad_norm_measured`` and ``grad_rms_measured``.
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
        self._counted: Counter[str] = Counter()

    def open(self, run_dir: Path) -> None:
        """Open the logger. Called once, in the thread that creates the monitor.

        Args:
            run_dir: the folder of the run.
        """

    def begin_at(self, step: int) -> None:
        """Called with the first step, and whenever the run goes back to an earlier one.

        Numbers that were logged from that step on will be logged again. Does nothing by default.
        """

    def log(self, step: int, time: float, values: dict[str, float]) -> None:
        """Log the numbers of one step. Update ratios come in a separate call, possibly some steps later.

        Args:
            step: the number of the step.
            time: when the step was recorded, in seconds since the epoch.
            values: the numbers by key. They may be NaN or infinite.
        """
        raise NotImplementedError

    def image(self, step: int, key: str, pixels: NDArray[np.uint8]) -> None:
        """Log an RGB image, uint8 [H, W, 3]. Does nothing by default."""

    def event(self, step: int, time: float, kind: str, data: dict[str, Any]) -> None:
        """Log an event: a finding, a skipped step, a rollback, … (see `History.events`).

        An event that repeats within 100 steps is sent again with its "count". `gradkern.diagnosis.notice_of`
        makes a text of an event. By default `log` gets the number of events of this kind so far.
        """
        self._counted[kind] += 1
        self.log(step, time, {f"gradkern/events/{kind}": float(self._counted[kind])})

    def close(self) -> None:
        """Close the logger. Called once, after the last step."""


class _Selection:
    """Chooses the parameters that one sink is sent, and builds its payloads."""

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
        """Report the first step and every return to an earlier one to the sink."""
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
            self.sink.image(row.step, "grad_rms_heatmap", self.heatmap.pixels())

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

    def add_event(self, row: EventRow) -> None:
        """Send an event; one that extends an earlier event has the step of the extension."""
        step = row.data.get("last_step", row.step) if row.extends else row.step
        self.sink.event(step, row.time, row.kind, row.data)

    def _due(self, step: int) -> bool:
        """Whether the step is a multiple of `every`, or the first recorded one after a multiple."""
        before, self.last = self.last, step
        if step != before:  # a step that is recorded again is due if it was before
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
        """Track the parameters with the largest and smallest values, up to the limit."""
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
            f"[GradMonitor] sinks: this {name} is used by another monitor; create one for each monitor"
        )
    try:
        sink.open(run_dir)
    except Exception as error:
        raise RuntimeError(f"[GradMonitor] sinks: {name}.open() failed: {error!r}") from error
    sink._in_use = True
    sink._counted.clear()  # those of an earlier monitor


class SinkFeed:
    """All sinks of a monitor. A sink that fails is removed; the others continue."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._selections = [_Selection(sink) for sink in sinks]

    def open(self, run_dir: Path) -> None:
        """Open every sink.

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
        """Send committed rows to every sink. Returns the messages to warn with."""
        problems = []
        for selection in list(self._selections):
            try:
                for row in rows:
                    selection.follow(row)
                    if isinstance(row, StepRow):
                        selection.add_step(row)
                    elif isinstance(row, WeightsRow):
                        selection.add_weights(row)
                    elif isinstance(row, EventRow):
                        selection.add_event(row)
            except Exception as error:  # anything can fail in a logger: its package, the network
                self._selections.remove(selection)
                selection.sink._in_use = False
                problems.append(
                    f"[GradMonitor] {type(selection.sink).__name__} failed and was removed: {error!r}. "
                    "Recording to the run's file continues."
                )
        return problems

    def close(self) -> None:
        for selection in self._selections:
            selection.sink._in_use = False
            try:
                if selection.sink.heatmap_every and selection.sent % selection.sink.heatmap_every:
                    selection.sink.image(
                        selection.heatmap.last_step, "grad_rms_heatmap", selection.heatmap.pixels()
                    )
                selection.sink.close()
            except Exception as error:
                name = type(selection.sink).__name__
                warn(f"[GradMonitor] {name}.close() failed: {error!r}", RuntimeWarning)
