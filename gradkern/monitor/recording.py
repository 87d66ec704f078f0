"""`Recording`: the part of a monitor in the process that writes the run."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gradkern._util.warning import LISTENERS
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.watchdog import OnFinding
from gradkern.history.facade import History
from gradkern.history.lock import RunLock
from gradkern.history.rows import EventRow
from gradkern.monitor.captures.capture import AmendmentCapture, Capture, Extra, HostCapture
from gradkern.monitor.captures.joiner import StepJoiner, WholeCapture
from gradkern.monitor.captures.step import StepCapture
from gradkern.monitor.captures.transfer import PinnedPool
from gradkern.monitor.continuing import check_model
from gradkern.monitor.facts import FactFinder
from gradkern.monitor.models.layouts import Layouts
from gradkern.monitor.models.optimizers import Optimizers, as_rates
from gradkern.monitor.models.parts import Part, Parts
from gradkern.monitor.online import OnlineDiagnosis
from gradkern.monitor.periodic.part import PartCapture
from gradkern.monitor.step_counter import StepCounter
from gradkern.monitor.writing.committer import Feed
from gradkern.monitor.writing.thread import WritingThread
from gradkern.params.stats import GradStats


@dataclass(frozen=True)
class Options:
    """The arguments of `GradMonitor` that determine what is recorded."""

    every: int
    update_every: int
    histogram_every: int | None
    on_finding: OnFinding | None


@dataclass(frozen=True)
class _Target:
    """Where the statistics of a part go."""

    capture: Callable[..., Capture]
    """`StepCapture`, of the same arguments."""
    submit: Callable[[Capture], None]
    members: tuple[PartCapture, ...]
    layouts: Layouts


def _writing_thread(folder: Path, meta: dict[str, Any], feed: Feed, parts: Parts) -> WritingThread:
    lock = RunLock(folder)

    def check(history: History) -> None:
        check_model(history, parts.whole.plan, parts.modules)

    try:
        return WritingThread(folder, meta, feed, check=check, ended=lock.release)
    except BaseException:
        lock.release()
        raise


class Recording:
    """Captures the arguments of `record` and writes them in a thread.

    Args:
        folder: folder of the run.
        meta: entries of `History.meta`.
        feed: gets the committed rows, too.

    Raises:
        HistoryError: the folder cannot be written, another monitor records to it, or it has a run of another
            model.
    """

    def __init__(
        self,
        folder: Path,
        meta: dict[str, Any],
        feed: Feed,
        parts: Parts,
        optimizers: Optimizers,
        numbers: StepCounter,
        options: Options,
    ) -> None:
        self.thread = _writing_thread(folder, meta, feed, parts)
        self._pool = PinnedPool()
        self._parts, self._rated = parts, tuple(optimizers.values())
        self._numbers, self._warnings = numbers, set[str]()
        self._joiner = StepJoiner(parts.names, self.thread.submit)
        try:
            self._captures = {part: self._periodic(part, options) for part in parts.each}
            self._targets = {part: self._target(part) for part in (*parts.each, parts.whole)}
            self._facts = FactFinder(
                parts.whole.plan,
                parts.names,
                parts.modules,
                optimizers,
                lambda row: self.thread.submit(HostCapture(row)),
            )
            self._online = None
            if options.on_finding is not None:
                self._online = self._diagnose(folder, options.on_finding)
        except BaseException:
            self.thread.close()
            raise
        LISTENERS.add(self)

    def _periodic(self, part: Part, options: Options) -> PartCapture:
        every, histogram_every = options.update_every, options.histogram_every
        return PartCapture(part, self._numbers, every, histogram_every, self._pool, self._submit_for(part))

    def _target(self, part: Part) -> _Target:
        members = tuple(self._captures[member] for member in self._parts.members(part))
        is_whole = part is self._parts.whole and self._parts.names
        capture = functools.partial(WholeCapture, self._parts.names) if is_whole else StepCapture
        return _Target(capture, self._submit_for(part), members, part.layouts)

    def _submit_for(self, part: Part) -> Callable[[Capture], None]:
        if part is self._parts.whole:
            return self.thread.submit
        return functools.partial(self._joiner.add, part.name)

    def _diagnose(self, folder: Path, on_finding: OnFinding) -> OnlineDiagnosis:
        recorded = 0
        if self.thread.last_step is not None:
            with History.open(folder) as history:
                recorded = len(history)
        online = OnlineDiagnosis(on_finding, folder, recorded, self.event)
        self.thread.committer.committed = online.committed
        return online

    # ---- the training thread ----

    def take_severe(self) -> Finding | None:
        """A severe finding that training should stop for, once."""
        return None if self._online is None else self._online.take_severe()

    def begin(self, number: int, part: Part, is_new: bool) -> None:
        """`record` is called for a step; `is_new` if it is not another part of the last one."""
        if is_new:
            self._joiner.release()
        for capture in self._targets[part].members:
            capture.weights.begin(number)

    def leave_out(self, part: Part) -> None:
        """A step was left out because of `every`."""
        for capture in self._targets[part].members:
            capture.weights.recorded(None)

    def add(
        self,
        number: int,
        part: Part,
        stats: GradStats,
        start: float,
        loss: float | Tensor | None,
        given: Any,
        phase: str,
        extra: Extra | None,
    ) -> None:
        """Submit the statistics of a step.

        Args:
            start: time of the call.
            loss, given: the loss as a number or tensor, and as the caller gave it.
            phase: what the norms are of.
        """
        target = self._targets[part]
        layout, rates = target.layouts.of(stats), as_rates(self._rated)
        self._joiner.norm_type = stats.norm_type
        target.submit(target.capture(number, start, layout, stats, loss, rates, phase, self._pool, extra))
        self.thread.record_seconds.append(time.time() - start)
        if not self._facts.settled(part.name, stats.policy):
            self._facts.recorded(number, stats, given, part.name)
        collected = part.pending.gave(stats)
        for member in target.members:
            member.recorded(number, stats, collected)

    def amend(self, number: int, values: Extra) -> None:
        """Submit numbers of an earlier step."""
        self._joiner.amend(AmendmentCapture(number, values, self._pool))

    def event(self, number: int, kind: str, data: dict[str, Any]) -> None:
        """Submit an event. From any thread: a diagnosis calls this in the writing thread."""
        self.thread.submit(HostCapture(EventRow(number, kind, data, time.time())))

    def warned(self, message: str) -> None:
        """A warning of gradkern becomes an event, once in a run. From any thread."""
        if message not in self._warnings:
            self._warnings.add(message)
            self.event(max(self._numbers.last, 1), "warning", {"message": message})

    def resume(self, number: int) -> None:
        """Continue after a step, which may be an earlier one."""
        self._joiner.release()
        for capture in self._captures.values():
            capture.weights.resume(number)

    def close(self) -> None:
        """Write everything that was recorded, and stop listening to the optimizers and to warnings."""
        try:
            self._facts.close()
            for capture in self._captures.values():
                capture.weights.close()
            self._joiner.release()
        finally:
            self.thread.close()
            LISTENERS.discard(self)

    def detach(self) -> None:
        """Stop listening to the optimizers and to warnings; nothing is written."""
        LISTENERS.discard(self)
        self._facts.close()
        for capture in self._captures.values():
            capture.weights.detach()
