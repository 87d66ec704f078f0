"""`GradMonitor`: records what a clip (or a measurement) says of every gradient, at next to no cost."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
from torch import Tensor

from gradkern._util.warning import warn
from gradkern.clipping import ladder
from gradkern.diagnosis.watchdog import OnFinding, as_action
from gradkern.history import lock
from gradkern.history.facade import History
from gradkern.history.format import read_json, write_json
from gradkern.history.named import LOSS
from gradkern.history.rows import EventRow
from gradkern.monitor.arguments import (
    PHASE_SAID,
    as_count,
    as_extra,
    as_loss,
    as_optimizers,
    as_parts,
    as_rates,
    as_step,
    check_said,
    run_folder,
)
from gradkern.monitor.capture import AmendmentCapture, HostCapture, StepCapture
from gradkern.monitor.describe import describe_run
from gradkern.monitor.facts import FactFinder
from gradkern.monitor.layouts import Layouts
from gradkern.monitor.lifetime import follow
from gradkern.monitor.looks import GradientLooks
from gradkern.monitor.online import OnlineDiagnosis
from gradkern.monitor.pending import PendingStep, combined
from gradkern.monitor.periodic import Periodic
from gradkern.monitor.ranks import agree_on_step, over_several_ranks
from gradkern.monitor.recorder import Feed, Recorder
from gradkern.monitor.transfer import PinnedPool
from gradkern.params.arguments import innermost
from gradkern.params.names import NamedParameters
from gradkern.params.plan import ParameterPlan
from gradkern.params.stats import GradStats

if TYPE_CHECKING:
    from gradkern.sinks import Sink


class GradMonitor:
    """Records gradient statistics, one row an optimizer step, to a folder that can be looked at
    while it is written.

    Args:
        model: a Module (looked at again when its parameters change), (name, Parameter) pairs or
            Parameters; its wrappers (DDP, FSDP, torch.compile) leave no trace in the names.
        optimizer: one, or several in a list or by name (Muon beside AdamW): for the learning rates,
            and for weight norms and update ratios (two hooks around
            its step; of a wrapper like Accelerate's, around that of the one within). Without it those
            are not recorded. Of an object that is no torch optimizer, but has `param_groups`, only the
            learning rates are.
        run_dir: folder of the run, made if it is not there; a run that is there is gone on with.
            By default a new one under ``gradkern-runs/``, named after the second.
        every: record each `every`-th optimizer step.
        sinks: loggers besides (`gradkern.sinks`), or their names: "jsonl", "tensorboard", "wandb",
            "mlflow".
        update_every: look at weights (norms, update ratios) and gradients (zeros of parameters with one
            dimension, elements that are never non-zero) at steps 1, 2, 4, 8, … and then each so many
            optimizer steps, as `record` counts them; 0 for never.
        histogram_every: take log2 histograms each so many optimizer steps (a sample of up to 1,024
            elements of each gradient); 0 for never. By default at the early looks only.
        count_zeros: where `record` measures by itself, count zero elements too.
        all_ranks: in a distributed program rank 0 alone records, unless this is set: then each rank
            does, to ``run_dir/rank<N>`` (pipeline stages hold different parameters). Without
            `run_dir`, the ranks then agree on a folder: every rank builds its monitor.
        on_finding: diagnose the run after 10, 20, 50, 100 and then every 100 recorded steps, in the writing
            thread. "warn" warns of each alarm, "raise" raises `DiagnosisError` at the next `record` after a
            severe one (not over several ranks, of which only one would), a function is called with each
            `Finding` in the writing thread. Findings become events of the run.

    Example:
        >>> monitor = GradMonitor(model, optimizer, "runs/first")
        >>> for batch in loader:
        ...     loss = compute_loss(model, batch)
        ...     loss.backward()
        ...     stats = clipper.clip_()
        ...     monitor.record(stats, loss=loss)
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> monitor.close()

    Raises:
        HistoryError: the folder cannot be written, holds a damaged or foreign file (whose content is
            left as it is), or is being recorded to by another monitor.
        TypeError: `optimizer` is not a torch optimizer, `sinks` no list of sinks.
        ValueError: a sink is in use by another monitor.
        RuntimeError: a sink cannot be opened; of a sharded model: another rank could not open its folder.

    Notes:
        Of a model with DTensors, building it is a small collective over the default group: every rank
        builds one, and all count on from the same step.
        A copy or a pickle of what holds a monitor (an averaged model, a checkpoint) has one that records
        nothing, and says so once when it is told to.

        Nothing here waits for a device. Values are copied to pinned memory and written by a thread
        when they have arrived, at the latest a fraction of a second later; a killed process loses
        no more than that. Disk trouble during training is warned of, retried, and never raised.
    """

    def __init__(
        self,
        model: NamedParameters,
        optimizer: torch.optim.Optimizer
        | Sequence[torch.optim.Optimizer]
        | Mapping[str, torch.optim.Optimizer]
        | None = None,
        run_dir: str | os.PathLike[str] | None = None,
        *,
        every: int = 1,
        sinks: Iterable[Sink | str] = (),
        update_every: int = 100,
        histogram_every: int | None = None,
        count_zeros: bool = False,
        all_ranks: bool = False,
        on_finding: OnFinding | None = None,
    ) -> None:
        self._on_finding = as_action("GradMonitor", on_finding)
        self._online: OnlineDiagnosis | None = None
        self.every = as_count("every", every, 1)
        update_every = as_count("update_every", update_every, 0)
        if histogram_every is not None:
            histogram_every = as_count("histogram_every", histogram_every, 0)
        self._histogram_every = histogram_every
        self._count_zeros = count_zeros
        optimizers = as_optimizers(optimizer)
        self._plan = ParameterPlan("GradMonitor", model)
        self._optimizers, self._rated = optimizers, tuple(optimizers.values())
        self._stepping = tuple(one for one in self._rated if innermost(one) is one)
        self._norm_type: float | None = None
        self._pool = PinnedPool()
        module = model if isinstance(model, torch.nn.Module) else None
        self._layouts = Layouts(self._plan, module, list(optimizers.values()))
        self._module = module
        self._unusable = ""
        self._told = False
        self._pending = PendingStep(self._stepping, self._record_pending)
        self._recorder: Recorder | None = None
        self._step = 0
        failed = True
        try:
            self.run_dir, rank, active = run_folder(run_dir, all_ranks)
            if active:
                meta = describe_run(
                    list(optimizers.values()), self.every, update_every, self._histogram_every, rank
                )
                self._start(meta, sinks, update_every)
            failed = False
        finally:
            self._step = agree_on_step(self._plan.params, self._step, failed)
        self._count_on()

    def _count_on(self) -> None:
        if self._recorder is not None:
            self._periodic.resume(self._step)

    def _start(self, meta: dict[str, Any], sinks: Iterable[Sink | str], update_every: int) -> None:
        feed = _feed(sinks)
        self._lock = lock.RunLock(self.run_dir)
        recorder = None
        try:
            recorder = Recorder(self.run_dir, meta, feed, ended=self._lock.release)
            # An optimizer keeps its hooks alive, and must not keep the monitor.
            self._periodic = Periodic(
                self._stepping,
                self._plan,
                self._layouts,
                update_every,
                self._pool,
                recorder.submit,
            )
            self._looks = GradientLooks(
                self._plan, self._layouts, update_every, self._histogram_every, self._pool, recorder.submit
            )
            self._facts = FactFinder(
                self._plan, self._module, self._optimizers, lambda row: recorder.submit(HostCapture(row))
            )
        except BaseException:
            if recorder is None:
                self._lock.release()
            else:
                recorder.close()
            raise
        self._recorder, self._step = recorder, recorder.last_step or 0
        if self._on_finding is not None:
            self._diagnose_online(self._on_finding, recorder)
        follow(self)

    def _diagnose_online(self, on_finding: OnFinding, recorder: Recorder) -> None:
        if on_finding == "raise" and over_several_ranks():
            raise ValueError(
                '[GradMonitor] on_finding: "raise" would stop one rank alone, and the others would wait; '
                'use "warn" or a function'
            )

        def note(step: int, kind: str, data: dict[str, Any]) -> None:
            recorder.submit(HostCapture(EventRow(step, kind, data, time.time())))

        recorded = 0
        if recorder.last_step is not None:
            with History.open(self.run_dir) as history:
                recorded = len(history)
        self._online = OnlineDiagnosis(on_finding, self.run_dir, recorded, note)
        recorder.committed = self._online.committed

    # ---- recording ----

    @property
    def step(self) -> int:
        """Number of the last optimizer step that `record` was called for (from 1)."""
        return self._step

    def record(
        self,
        stats: GradStats | Sequence[GradStats] | None = None,
        *,
        loss: float | Tensor | None = None,
        step: int | None = None,
        extra: Mapping[str, Any] | None = None,
        inv_scale: float | None = None,
        after_clip: bool | None = None,
    ) -> None:
        """Record one optimizer step. Call it at every one (`every` leaves some out), not once a micro-batch.

        Args:
            stats: what `GradClipper.clip_` (or `measure`) returned: no further pass is made; a list of
                them where the step was clipped in parts. By default the gradients are measured now, as
                they are.
            loss: a number (of any type that `float` takes, but no text), or a tensor of one element on
                any device.
            step: number of the optimizer step; by default one more than the last. A number that
                was recorded already starts a branch: the steps from it on are replaced.
            extra: your own numbers of the step by name, ``{"attn/max_logit": tensor}``: numbers, or tensors
                of up to 64 elements on any device (a curve for each, "name/0", "name/1", …).
            inv_scale: 1 / loss scale, a positive number, for gradients that still carry the scale
                when they are measured here. With `stats`, give it to `measure` instead.
            after_clip: whether the norms are of gradients that something else has clipped already
                (True), or has not (False). If it is not said, norms that do not come from `clip_` are
                recorded as "measured". Those of `clip_` are always from before clipping.

        Raises:
            ValueError, TypeError: arguments that contradict each other or `stats`; a loss that is no
                number. Nothing is recorded then. Types are checked at every call, whatever `every` is.
            RuntimeError: after `close`, or in a forked process.

        Notes:
            No host-device synchronisation; nothing is done for each parameter (docs/monitoring.md
            has the cost, measured).
        """
        start = time.time()
        if self._unusable:
            return self._refuse()
        if self._online is not None:
            self._online.check()
        number = self._step + 1 if step is None else as_step(step)
        if stats is not None and not isinstance(stats, GradStats):
            stats = combined(as_parts(stats))
        if type(stats) is not GradStats or after_clip is not None or inv_scale is not None:
            inv_scale = check_said(stats, inv_scale, after_clip)
        given, loss = loss, as_loss(loss)
        extras = as_extra("GradMonitor.record", extra) if extra else None
        if number % self.every:
            self._begin_step(number)
            if self._recorder is not None:
                self._periodic.recorded(None)
            return
        if stats is None:
            stats = self._pending.take()
        if stats is None:
            stats = self._measure(1.0 if inv_scale is None else inv_scale)
        if stats.norm_type != self._norm_type:
            self._check_norm_type(stats.norm_type)
        self._begin_step(number)
        recorder = self._recorder
        if recorder is None:  # another rank records
            return
        layout, rates = self._layouts.of(stats), as_rates(self._rated)
        phase = "before_clip" if stats.clip_coef is not None else PHASE_SAID[after_clip]
        recorder.submit(StepCapture(number, start, layout, stats, loss, rates, phase, self._pool, extras))
        recorder.record_seconds.append(time.time() - start)
        if not self._facts.done or stats.policy is not self._facts.policy:
            self._facts.recorded(number, stats, given)
        if self._looks.due(number):
            self._looks.look(number, stats)
        self._periodic.recorded(stats, collected=self._pending.gave(stats))

    def amend(
        self, step: int, *, loss: float | Tensor | None = None, extra: Mapping[str, Any] | None = None
    ) -> None:
        """Give numbers of an earlier step that are known only later; the last ones given count.

        Args:
            step: its number. A step that was not recorded (`every`) is passed over.
            loss: as in `record`.
            extra: as in `record`.

        Raises:
            TypeError, ValueError: as `record`.
            RuntimeError: after `close`, or in a forked process.

        Notes:
            No host-device synchronisation.
        """
        if self._unusable:
            return self._refuse("GradMonitor.amend")
        number = as_step(step)
        values = as_extra("GradMonitor.amend", extra)
        amended = as_loss(loss)
        if amended is not None:
            values[LOSS] = amended
        if values and self._recorder is not None:
            self._recorder.submit(AmendmentCapture(number, values, self._pool))

    def event(self, kind: str, data: Mapping[str, Any] | None = None, *, step: int | None = None) -> None:
        """Note that something happened: a rollback, a change of the data. `History.events` has it.

        Args:
            kind: what, in a word.
            data: what is known of it: values that JSON has.
            step: when; by default the last step.

        Raises:
            TypeError, ValueError: `data` is not JSON.
            RuntimeError: after `close`, or in a forked process.
        """
        if self._unusable:
            return self._refuse("GradMonitor.event")
        plain = read_json(write_json(dict(data or {})), "event")  # a copy, as the file will have it
        number = self._step if step is None else as_step(step)
        if self._recorder is not None:
            self._recorder.submit(HostCapture(EventRow(number, str(kind), plain, time.time())))

    def collect(self, stats: GradStats) -> None:
        """Take statistics of the step under way that other code measured, before clipping.

        Several calls may each be about some of the parameters. They become one step when all of the monitor's
        optimizers have stepped, when a parameter comes again, or with ``record(loss=loss)``.
        `patch_torch(monitor)` calls this for each clip.
        """
        self._pending.add(stats)

    @property
    def has_pending(self) -> bool:
        """Whether something is collected that is not recorded yet."""
        return bool(self._pending)

    @property
    def records(self) -> bool:
        """Whether this process writes the run: another rank may."""
        return self._recorder is not None

    @property
    def is_open(self) -> bool:
        """Whether `record` can be called."""
        return not self._unusable

    def identities(self) -> tuple[int, ...]:
        """`id` of each parameter as they are now; the same object while they are the same."""
        self._plan.current()
        return self._plan.identities

    def _record_pending(self) -> None:
        if self._pending and not self._unusable:
            self.record(self._pending.take(), after_clip=False)

    def flush(self) -> bool:
        """Wait until everything recorded is on disk. Synchronises. False if it cannot be written."""
        self._record_pending()
        return self._recorder is None or self._recorder.flush()

    def history(self) -> History:
        """The run so far, to read. Flushes, so it synchronises."""
        self.flush()
        return History.open(self.run_dir)

    @property
    def lost(self) -> int:
        """How many steps could not be recorded."""
        return 0 if self._recorder is None else self._recorder.lost

    # ---- life ----

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint needs, so that steps keep their numbers after a resume."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a checkpoint: the next step recorded is the one after the checkpoint's.

        Steps that the history holds beyond it are replaced as they are recorded again (they stay
        in the file: ``History.open(run, superseded=True)``).

        Raises:
            ValueError: `state` is not what `state_dict` returns.
        """
        if not isinstance(state, Mapping) or "step" not in state:
            raise ValueError(
                f"[GradMonitor.load_state_dict] state: expected what state_dict() returned, got {state!r:.80}"
            )
        self._step = as_step(state["step"])
        self._count_on()

    def close(self) -> None:
        """Write what is left, close the file and the sinks, take the hooks off. Twice does no harm."""
        if self._unusable:
            return
        self._record_pending()
        self._pending.detach()
        self._unusable = "the monitor is closed"
        if self._recorder is not None:
            try:
                self._periodic.close()
            finally:
                self._recorder.close()

    def forked(self) -> None:
        """Called in a process forked from the one that records: nothing can be recorded here."""
        if not self._unusable:
            self._unusable = "this process was forked from the one that records"
            self._periodic.detach()

    def __enter__(self) -> GradMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_recorder", None) is not None:
            self.close()

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """copy, deepcopy and pickle come here, mostly with a model that holds the monitor."""
        return _copy_of, (self.run_dir, self._step, self.every)

    def __repr__(self) -> str:
        state = (
            "a copy"
            if self._unusable == _COPY
            else "closed"
            if self._unusable
            else "recording"
            if self._recorder
            else "another rank records"
        )
        return f"GradMonitor({str(self.run_dir)!r}, step {self._step}, {state})"

    # ---- inside ----

    def _refuse(self, operation: str = "GradMonitor.record") -> None:
        if self._unusable != _COPY:
            raise RuntimeError(
                f"[{operation}] cannot record, because {self._unusable}; build a new GradMonitor"
            )
        if not self._told:
            self._told = True
            warn(
                f"[{operation}] this monitor came with a copy or a pickle of what holds it, and "
                "records nothing: one file cannot have two writers. Build a GradMonitor for the copied model "
                "if that is trained"
            )

    def _check_norm_type(self, norm_type: float) -> None:
        if self._norm_type is not None:
            raise ValueError(
                f"[GradMonitor.record] stats.norm_type: expected {self._norm_type!r} as before in this run, "
                f"got {norm_type!r}"
            )
        if self._recorder is not None:
            self._recorder.check_norm_type(norm_type)
        self._norm_type = norm_type

    def _begin_step(self, number: int) -> None:
        self._step = number
        if self._recorder is not None:
            self._periodic.begin(number)

    @torch.no_grad()
    def _measure(self, inv_scale: float) -> GradStats:
        params = self._plan.current()
        plan = self._plan
        measured = ladder.measure("GradMonitor.record", params, plan.names, 2.0, self._count_zeros, inv_scale)
        return GradStats.of(
            measured, plan.names, plan.sizes(), plan.first, plan.identities, 2.0, inv_scale=inv_scale
        )


#: Why a copy cannot be recorded to.
_COPY = "it is a copy"


def _copy_of(run_dir: Path, step: int, every: int) -> GradMonitor:
    """What a copied model holds in place of its monitor: it can be read from, and records nothing."""
    copy = GradMonitor.__new__(GradMonitor)
    copy.run_dir, copy.every, copy._step = run_dir, every, step
    copy._unusable, copy._recorder, copy._told = _COPY, None, False
    copy._pending = PendingStep([], copy._record_pending)
    return copy


def _feed(sinks: Iterable[Sink | str]) -> Feed:
    """The one place where a monitor meets its sinks, which are built on what it records."""
    from gradkern.sinks import make_sinks
    from gradkern.sinks.base import SinkFeed

    return SinkFeed(make_sinks(sinks))
