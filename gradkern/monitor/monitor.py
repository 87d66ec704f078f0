"""`GradMonitor`: records the gradient statistics of a training run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex

import torch
from torch import Tensor

from gradkern.clipping import route
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.watchdog import DiagnosisError, OnFinding, as_action
from gradkern.history.facade import History
from gradkern.history.format import read_json, write_json
from gradkern.history.named import loss_of
from gradkern.monitor.arguments import as_count, as_extra, as_loss, as_step, unknown_argument
from gradkern.monitor.continuing import Continuation
from gradkern.monitor.copies import CLOSED, COPY, FORKED, Usability
from gradkern.monitor.describe import describe_run
from gradkern.monitor.lifetime import follow
from gradkern.monitor.models.optimizers import Optimizers, as_optimizers
from gradkern.monitor.models.parts import Part, Parts
from gradkern.monitor.models.pending import PendingStep
from gradkern.monitor.ranks import agree_on_step, first_finding, over_several_ranks
from gradkern.monitor.recording import Options, Recording
from gradkern.monitor.run_folder import run_folder
from gradkern.monitor.statistics_arguments import PHASE_OF, check_statistics
from gradkern.monitor.step_counter import StepCounter
from gradkern.monitor.writing.committer import Feed
from gradkern.params.names import NamedParameters
from gradkern.params.stats import GradStats

if TYPE_CHECKING:
    from gradkern.sinks import Sink


class GradMonitor:
    """Record gradient statistics to a folder, one row per optimizer step.

    The folder can be read while it is written, with `History`, `gradkern watch` and `gradkern report`.

    Args:
        model: a Module (read again when its parameters change), (name, Parameter) pairs or Parameters.
            Prefixes that wrappers add (DDP, FSDP, torch.compile) are removed from the names. Several models
            of one training loop are given by name, ``{"G": generator, "D": discriminator}``; see `part` of
            `record`.
        optimizer: an optimizer, or several in a list or by name. Learning rates, weight norms and update
            ratios are recorded with it. Of an object that only has `param_groups` the learning rates are.
            With several models, an optimizer belongs to the model of its name, or to those whose parameters
            it has.
        run_dir: folder of the run, created if it does not exist; a new one for each training. A run that
            exists is continued; see `load_state_dict`. Default: a new folder under ``gradkern-runs/``, named
            after the time. Its path is the attribute `run_dir`, and is logged by the logger "gradkern" at
            level INFO.
        every: record every `every`-th optimizer step.
        sinks: loggers that also get the numbers: objects of `gradkern.sinks` or their names, "jsonl",
            "tensorboard", "wandb", "mlflow", "trackio".
        update_every: record periodic statistics at steps 1, 2, 4, 8, … and then every `update_every`
            optimizer steps; 0 for never. These are weight norms and update ratios, the zeros of vectors, and
            which elements ever had a non-zero gradient.
        histogram_every: record log2 histograms every `histogram_every` optimizer steps, from a sample of
            about 1,024 elements of each gradient; 0 for never. Default: at steps 1, 2, 4, 8, … below
            `update_every`.
        count_zeros: count zero elements too, if `record` measures the gradients itself.
        all_ranks: in a distributed program, record on every rank, to ``run_dir/rank<N>``. Use it if ranks
            have different parameters (pipeline stages). By default only rank 0 records. Without `run_dir` the
            ranks agree on a folder, so that every rank has to build its monitor.
        on_finding: diagnose the run after 10, 20, 50, 100 and then every 100 recorded steps, in the writing
            thread. Findings become events of the run. In addition:

            - "warn": warn of each finding that is a warning or severe.
            - "raise": raise `DiagnosisError` in the next `record` after a severe finding. Over several ranks
              it warns, and `raise_if_severe` raises the error on all of them.
            - a function: call it with each `Finding`, in the writing thread.

    Examples:
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
        HistoryError: the folder cannot be written, has a damaged or foreign file (which is not changed) or a
            run of another model, or another monitor is recording to it.
        TypeError: `optimizer` is not a torch optimizer, or `sinks` is not a list of sinks.
        ValueError: a number is out of range, a sink is used by another monitor, or an optimizer belongs to
            none of several models.
        RuntimeError: a sink cannot be opened. With a sharded model: another rank could not open its folder.

    Notes:
        No host-device synchronisation. Values are copied to pinned memory. A thread writes them after they
        have arrived, a fraction of a second later. A killed process loses no more than that. If the disk
        fails during training, the monitor warns and tries again; it does not raise.

        With DTensors, construction is a small collective over the default group. Every rank has to build a
        monitor, and all continue from the same step.

        If an object that holds a monitor is copied or pickled (an averaged model, a checkpoint), the monitor
        of the copy records nothing and warns once when it is called.
    """

    def __init__(
        self,
        model: NamedParameters | Mapping[str, NamedParameters],
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
        action = as_action("GradMonitor", on_finding)
        self._raises_together = action == "raise" and over_several_ranks()
        self.every = as_count("every", every, 1)
        update_every = as_count("update_every", update_every, 0)
        histograms = None if histogram_every is None else as_count("histogram_every", histogram_every, 0)
        optimizers = as_optimizers(optimizer)
        self._count_zeros = count_zeros
        self._use = Usability()
        self._norm_type: float | None = None
        self._numbers = StepCounter()
        self._parts = Parts(model, optimizers, self._complete)
        #: The only model; None if there are several.
        self._only = None if self._parts.names else self._parts.whole
        self._recording: Recording | None = None
        self._continuation = Continuation(Path(), None)
        options = Options(self.every, update_every, histograms, action)
        failed = True
        try:
            self.run_dir, rank, active = run_folder(run_dir, all_ranks)
            if active:
                self._open(optimizers, options, rank, sinks)
            failed = False
        finally:
            self._resume(agree_on_step(self._parts.params(), self._numbers.last, failed))

    def _open(self, optimizers: Optimizers, options: Options, rank: int, sinks: Iterable[Sink | str]) -> None:
        meta = describe_run(optimizers, options, rank, self._parts.names)
        self._recording = Recording(
            self.run_dir, meta, _feed(sinks), self._parts, optimizers, self._numbers, options
        )
        last = self._recording.thread.last_step
        self._numbers.resume(last or 0)
        self._continuation = Continuation(self.run_dir, last if rank == 0 else None)
        follow(self)

    def _resume(self, step: int) -> None:
        self._numbers.resume(step)
        if self._recording is not None:
            self._recording.resume(step)

    # ---- recording ----

    @property
    def step(self) -> int:
        """Number of the last optimizer step that `record` was called for (from 1)."""
        return self._numbers.last

    def record(
        self,
        stats: GradStats | Sequence[GradStats] | None = None,
        *,
        part: str | None = None,
        loss: float | Tensor | None = None,
        step: int | None = None,
        extra: Mapping[str, Any] | None = None,
        inv_scale: float | None = None,
        after_clip: bool | None = None,
        **unknown: NoReturn,
    ) -> None:
        """Record one optimizer step.

        Call it once for every optimizer step, not for every micro-batch: after ``backward()`` and clipping,
        before ``optimizer.step()``. `every` leaves steps out by itself.

        Args:
            stats: the result of `GradClipper.clip_` or `measure`, so that the gradients are not read again. A
                list of results if the step was clipped in pieces. By default the gradients are measured now.
            part: with several models, the name of the model whose step this is. A step of the run consists of
                one call for each model; a second call for a model begins the next step. Default: the model
                that `stats` belong to, or else all models together.
            loss: a number (any type that `float` accepts, except text), or a tensor with one element on any
                device. The loss of a part is recorded as "loss/<part>" in `History.extra`.
            step: number of the optimizer step. Default: the next one. A number that was recorded before
                replaces that step and all later ones.
            extra: your own values by name, for example ``{"attn/max_logit": tensor}``: numbers, or tensors
                with up to 64 elements on any device. Each element becomes a curve ("name/0", "name/1", …).
            inv_scale: 1 / loss scale, a positive number, if gradients are measured here while they still
                carry the scale. With `stats`, pass it to `measure` instead.
            after_clip: whether other code has clipped the gradients already (True) or not (False). By default
                norms that do not come from `clip_` are recorded as "measured". Norms from `clip_` are always
                those before clipping.

        Raises:
            ValueError, TypeError: an argument is invalid or contradicts `stats`. Nothing is recorded then.
                Arguments are checked at every call, also at steps that `every` leaves out.
            RuntimeError: after `close`, or in a forked process.
            DiagnosisError: a severe finding, with on_finding="raise", unless there are several ranks.

        Warns:
            GradkernWarning: the gradients are recorded at the wrong place of the training loop: after the
                optimizer step, several times per step, or with the scale of a GradScaler; or the run existed
                and this seems to be a new training: neither `load_state_dict` nor `step` has said where to
                continue it, or it begins at the run's first step again.

        Notes:
            No host-device synchronisation, and no work per parameter (docs/monitoring.md has the measured
            cost). A step of several models is written after its last part, or when the next step begins.
        """
        start = time.time()
        if unknown:
            raise unknown_argument(*unknown)
        if self._use.reason:
            return self._use.refuse()
        recording = self._recording
        if recording is not None and not self._raises_together:
            self._raise(recording.take_severe())
        if type(stats) is not GradStats or after_clip is not None or inv_scale is not None:
            stats, inv_scale = check_statistics(stats, inv_scale, after_clip)
        target = self._target(stats, part)
        number = self._numbers.upcoming(target.name) if step is None else as_step(step)
        given, loss = loss, as_loss(loss)
        extras = as_extra("GradMonitor.record", extra, self._parts.names) if extra else None
        if number % self.every:
            return self._leave_out(number, target, step is not None)
        if stats is None:
            stats = self._collected_or_measured(target, inv_scale)
        else:
            self._parts.drop_pending(target)  # the same step, collected from the clip
        if stats.norm_type != self._norm_type:
            self._check_norm_type(stats.norm_type)
        self._begin(number, target, step is not None)
        if recording is not None:  # else another rank records
            clipped = stats.clip_coef is not None or stats.applied
            phase = "before_clip" if clipped else PHASE_OF[after_clip]
            recording.add(number, target, stats, start, loss, given, phase, extras)

    def raise_if_severe(self) -> None:
        """Raise `DiagnosisError` if the run has a new severe finding, with on_finding="raise".

        `record` does this by itself in a program of one rank. Over several ranks every rank has to call it,
        for example before each evaluation: if one rank has a finding, all of them raise it.

        Raises:
            DiagnosisError: a severe finding.
            RuntimeError: after `close`, or in a forked process.

        Notes:
            Over several ranks this is a small collective over the default group, and synchronises. Otherwise
            there is no synchronisation.
        """
        if self._use.reason:
            return self._use.refuse("GradMonitor.raise_if_severe")
        finding = None if self._recording is None else self._recording.take_severe()
        self._raise(first_finding(finding) if self._raises_together else finding)

    def amend(
        self,
        step: int,
        *,
        part: str | None = None,
        loss: float | Tensor | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Add values to an earlier step that became known later, or correct them.

        Args:
            step: number of the step. The values of a step that is not recorded, because of `every`, are
                ignored; those of a later step are added when it is recorded.
            part, loss, extra: as in `record`.

        Raises:
            TypeError, ValueError: as `record`.
            RuntimeError: after `close`, or in a forked process.

        Notes:
            No host-device synchronisation.
        """
        if self._use.reason:
            return self._use.refuse("GradMonitor.amend")
        name = "" if part is None else self._parts.named(part).name
        number = as_step(step, "GradMonitor.amend")
        values = as_extra("GradMonitor.amend", extra, self._parts.names)
        amended = as_loss(loss, "GradMonitor.amend")
        if amended is not None:
            values[loss_of(name)] = amended
        if values and self._recording is not None:
            self._recording.amend(number, values)

    def event(self, kind: str, data: Mapping[str, Any] | None = None, *, step: int | None = None) -> None:
        """Record an event, for example a rollback or a change of the data. `History.events` lists it.

        Args:
            kind: what happened, in one word.
            data: details, as JSON values.
            step: number of the step. Default: the last one.

        Raises:
            TypeError, ValueError: `data` is not JSON.
            RuntimeError: after `close`, or in a forked process.
        """
        if self._use.reason:
            return self._use.refuse("GradMonitor.event")
        plain = read_json(write_json(dict(data or {})), "event")  # a copy, as it will be read
        number = self.step if step is None else as_step(step)
        if self._recording is not None:
            self._recording.event(number, str(kind), plain)

    def collect(self, stats: GradStats, *, again: bool = False, before_clip: bool = True) -> None:
        """Take statistics that other code has measured for the current step, before clipping.

        The statistics may cover some of the parameters only. All that were collected are recorded as one step
        when all optimizers have stepped, when a parameter is collected again, or by ``record(loss=loss)``.
        With several models this holds for each of them. `patch_torch(monitor)` calls this for every clip.
        Statistics that are given to `record` replace what was collected for the step.

        Args:
            stats: the statistics, with norms from before clipping.
            again: the gradients were collected before and only clipped since. The step keeps the norms from
                before the first clip, and has the smaller limit of the two.
            before_clip: whether the norms of gradients that were only measured are those before clipping.
                False if that is not known: the step is then recorded as "measured".
        """
        self._parts.of(stats).pending.add(stats, again, before_clip)

    def end_step(self) -> None:
        """Record what was collected for the current step, also if not every optimizer has stepped.

        If none has, and a gradient has inf or NaN, the step is recorded as skipped: a GradScaler has done so.
        """
        for part in self._parts.pending():
            part.pending.end()

    @property
    def has_pending(self) -> bool:
        """Whether statistics were collected that are not recorded yet."""
        return bool(self._parts.pending())

    def has_collected(self, params: Iterable[Tensor]) -> bool:
        """Whether statistics of one of these parameters were collected that are not recorded yet."""
        identities = [id(p) for p in params]
        return any(part.pending.has_any(identities) for part in self._parts.pending())

    @property
    def records(self) -> bool:
        """Whether this process writes the run. Without `all_ranks` only rank 0 does."""
        return self._recording is not None

    @property
    def is_open(self) -> bool:
        """Whether `record` can be called."""
        return not self._use.reason

    def identities(self) -> tuple[int, ...]:
        """`id` of each current parameter; the same tuple while they do not change."""
        self._parts.params()
        return self._parts.whole.plan.identities

    def flush(self) -> bool:
        """Wait until everything that was recorded is on disk. Synchronises.

        With several models, an incomplete step is written later, after its last part.

        Returns:
            False if something could not be written.
        """
        self._record_pending()
        return self._recording is None or self._recording.thread.flush()

    def history(self) -> History:
        """The run so far as a `History`. Calls `flush`, which synchronises."""
        self.flush()
        return History.open(self.run_dir)

    @property
    def lost(self) -> int:
        """Number of steps that could not be recorded."""
        return 0 if self._recording is None else self._recording.thread.lost

    # ---- checkpoints, and the end ----

    def state_dict(self) -> dict[str, int]:
        """The number of the last step, for a checkpoint."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a checkpoint: the next step follows the one of the checkpoint.

        Later steps that the run already has are replaced when they are recorded again. They stay in the file;
        ``History.open(run, superseded=True)`` shows them.

        Raises:
            ValueError: `state` is not what `state_dict` returns.
        """
        if not isinstance(state, Mapping) or "step" not in state:
            raise ValueError(
                f"[GradMonitor.load_state_dict] state: expected what state_dict() returned, got {state!r:.80}"
            )
        step = as_step(state["step"])
        self._resume(step)
        self._continuation.resumed(step)

    def close(self) -> None:
        """Write everything that was recorded, and close the file and the sinks. Idempotent."""
        if self._use.reason:
            return
        self._record_pending()
        self._parts.detach()
        self._use.reason = CLOSED
        if self._recording is not None:
            self._recording.close()

    def forked(self) -> None:
        """Stop recording in a process that was forked from the one that records."""
        if not self._use.reason:
            self._use.reason = FORKED
            if self._recording is not None:
                self._recording.detach()

    def __enter__(self) -> GradMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_recording", None) is not None:
            self.close()

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Called by copy, deepcopy and pickle, mostly for a model that holds the monitor."""
        return _copy_of, (self.run_dir, self.step, self.every)

    def __repr__(self) -> str:
        state = {"": "recording" if self._recording else "another rank records", COPY: "a copy"}
        return (
            f"GradMonitor({str(self.run_dir)!r}, step {self.step}, {state.get(self._use.reason, 'closed')})"
        )

    # ---- inside ----

    @staticmethod
    def _raise(finding: Finding | None) -> None:
        if finding is not None:
            raise DiagnosisError(finding)

    def _begin(self, number: int, part: Part, told: bool) -> None:
        """Begin a step, after all checks of `record`. `told`: whether the caller gave its number."""
        self._continuation.begin(number, told)
        is_new = self._numbers.begin(number, part.name)
        if self._recording is not None:
            self._recording.begin(number, part, is_new)

    def _leave_out(self, number: int, part: Part, told: bool) -> None:
        """`record` is called at a step that `every` leaves out. Its pending clips must not become a step."""
        self._parts.drop_pending(part)
        self._begin(number, part, told)
        if self._recording is not None:
            self._recording.leave_out(part)

    def _complete(self, pending: PendingStep) -> None:
        """The clips of a step are complete; called by `PendingStep`."""
        if pending and not self._use.reason:
            known = pending.before_clip
            stats = pending.take()
            part = next((part for part in self._parts.each if part.pending is pending), self._parts.whole)
            self.record(stats, part=part.name or None, after_clip=False if known else None)

    def _record_pending(self) -> None:
        for part in self._parts.pending():
            self._complete(part.pending)

    def _target(self, stats: GradStats | None, part: str | None) -> Part:
        if part is not None:
            return self._parts.named(part)
        return self._parts.of(stats) if self._only is None else self._only

    def _collected_or_measured(self, part: Part, inv_scale: float | None) -> GradStats:
        """The statistics of a step for which `record` is given none."""
        pending = self._parts.take_pending(part)
        return self._measure(part, 1.0 if inv_scale is None else inv_scale) if pending is None else pending

    def _check_norm_type(self, norm_type: float) -> None:
        if self._norm_type is not None:
            raise ValueError(
                f"[GradMonitor.record] stats.norm_type: expected {self._norm_type!r} as before in this run, "
                f"got {norm_type!r}"
            )
        if self._recording is not None:
            self._recording.thread.check_norm_type(norm_type)
        self._norm_type = norm_type

    @torch.no_grad()
    def _measure(self, part: Part, inv_scale: float) -> GradStats:
        plan = part.plan
        params = plan.current()
        measured = route.measure("GradMonitor.record", params, plan.names, 2.0, self._count_zeros, inv_scale)
        return GradStats.of(
            measured, plan.names, plan.sizes(), plan.first, plan.identities, 2.0, inv_scale=inv_scale
        )


def _copy_of(run_dir: Path, step: int, every: int) -> GradMonitor:
    """The monitor of a copy, which records nothing."""
    copy = GradMonitor.__new__(GradMonitor)
    copy.run_dir, copy.every = run_dir, every
    copy._numbers, copy._use, copy._recording = StepCounter(), Usability(COPY), None
    copy._numbers.resume(step)
    copy._continuation = Continuation(run_dir, None)
    copy._parts = Parts([], {}, copy._complete)
    return copy


def _feed(sinks: Iterable[Sink | str]) -> Feed:
    """The sinks of a monitor. Imported here, because sinks are built on what a monitor records."""
    from gradkern.sinks import make_sinks
    from gradkern.sinks.base import SinkFeed

    return SinkFeed(make_sinks(sinks))
