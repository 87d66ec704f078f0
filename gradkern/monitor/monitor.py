"""`GradMonitor`: records what a clip (or a measurement) says of every gradient, at next to no cost."""

from __future__ import annotations

import atexit
import os
import time
import weakref
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradkern import _general
from gradkern.monitor import lock
from gradkern.monitor.capture import HistogramCapture, StepCapture, WeightsCapture
from gradkern.monitor.describe import describe_run, layout_of, matches_plan
from gradkern.monitor.history import History
from gradkern.monitor.recorder import Recorder
from gradkern.monitor.sample import Sample
from gradkern.monitor.transfer import PinnedPool
from gradkern.monitor.updates import UpdateTracker
from gradkern.names import NamedParameters
from gradkern.plan import ParameterPlan
from gradkern.sinks import Sink, make_sinks
from gradkern.stats import GradStats

if TYPE_CHECKING:
    from gradkern.monitor.columns import Layout


class GradMonitor:
    """Records gradient statistics, one row an optimizer step, to a folder that can be looked at
    while it is written.

    Args:
        model: a Module (looked at again when its parameters change), (name, Parameter) pairs or
            Parameters; its wrappers (DDP, FSDP, torch.compile) leave no trace in the names.
        optimizer: for the learning rates, and for weight norms and update ratios (two hooks around
            its step). Without it those are not recorded.
        run_dir: folder of the run, made if it is not there; a run that is there is gone on with.
            By default a new one under ``gradkern-runs/``.
        every: record each `every`-th optimizer step.
        sinks: loggers besides (`gradkern.sinks`), or their names: "jsonl", "tensorboard", "wandb",
            "mlflow".
        update_every: look at weights each so many optimizer steps; 0 for never.
        histogram_every: take log2 histograms each so many optimizer steps (a sample of up to 1,024
            elements of each gradient); 0 for never.
        count_zeros: where `record` measures by itself, count zero elements too.
        all_ranks: in a distributed program rank 0 alone records, unless this is set: then each rank
            does, to ``run_dir/rank<N>`` (pipeline stages hold different parameters).

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
        HistoryError: the folder cannot be written, holds a damaged or foreign file (which is left
            as it is), or is being recorded to by another monitor.

    Notes:
        Nothing here waits for a device. Values are copied to pinned memory and written by a thread
        when they have arrived, at the latest a fraction of a second later; a killed process loses
        no more than that. Disk trouble during training is warned of, retried, and never raised.
    """

    def __init__(
        self,
        model: NamedParameters,
        optimizer: torch.optim.Optimizer | None = None,
        run_dir: str | os.PathLike[str] | None = None,
        *,
        every: int = 1,
        sinks: Iterable[Sink | str] = (),
        update_every: int = 100,
        histogram_every: int = 0,
        count_zeros: bool = False,
        all_ranks: bool = False,
    ) -> None:
        for key, value, least in (
            ("every", every, 1),
            ("update_every", update_every, 0),
            ("histogram_every", histogram_every, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(
                    f"[GradMonitor] {key}: expected an integer of at least {least}, got {value!r}"
                )
        self.every, self._update_every, self._histogram_every = every, update_every, histogram_every
        self._count_zeros = count_zeros
        self._plan = ParameterPlan("GradMonitor", model)
        self._model = model if isinstance(model, torch.nn.Module) else None
        self._optimizer = optimizer
        self.run_dir, rank, active = _folder(run_dir, all_ranks)
        self._pool = PinnedPool()
        self._layout: Layout | None = None
        self._layout_source: tuple[Any, Any] = (None, None)
        self._norm_type: float | None = None
        self._sample: Sample | None = None
        self._sampled: tuple[str, ...] = ()
        self._records_first: bool | None = None  # before the optimizer's step, or after it
        self._closed = False
        self._process = os.getpid()
        self._recorder: Recorder | None = None
        self._tracker: UpdateTracker | None = None
        self._step = 0
        if active:
            self._start(sinks, rank)

    def _start(self, sinks: Iterable[Sink | str], rank: int) -> None:
        made = make_sinks(sinks)
        self._lock = lock.RunLock(self.run_dir)
        try:
            meta = describe_run(self._optimizer, self.every, self._update_every, self._histogram_every, rank)
            self._recorder = Recorder(self.run_dir, meta, made)
        except BaseException:
            self._lock.release()
            raise
        self._step = self._recorder.last_step or 0
        if self._optimizer is not None:
            this = weakref.ref(self)  # an optimizer must not keep its monitor alive
            self._tracker = UpdateTracker(
                self._optimizer,
                lambda: _there(this)._plan.current(),
                lambda: _there(this)._update_due(),
                lambda exact, norm, ratio: _there(this)._add_weights(exact, norm, ratio),
            )
        _close_at_exit(self)

    # ---- recording ----

    @property
    def step(self) -> int:
        """Number of the last optimizer step that `record` was called for (from 1)."""
        return self._step

    def record(
        self,
        stats: GradStats | None = None,
        *,
        loss: float | Tensor | None = None,
        step: int | None = None,
        inv_scale: float | None = None,
        after_clip: bool = False,
    ) -> None:
        """Record one optimizer step. Call it once a step, not once a micro-batch.

        Args:
            stats: what `GradClipper.clip_` (or `measure`) returned: no further pass is made. By
                default the gradients are measured now, as they are.
            loss: a number, or a tensor of one element on any device.
            step: number of the optimizer step; by default one more than the last. A number that
                was recorded already starts a branch: the steps from it on are replaced.
            inv_scale: 1 / loss scale, for gradients that still carry the scale when they are
                measured here. With `stats`, give it to `measure` instead.
            after_clip: the norms are of gradients already clipped (by something else). Recorded
                beside the norms; those of `clip_` are always from before clipping.

        Raises:
            ValueError, TypeError: arguments that contradict each other or `stats`.
            RuntimeError: after `close`, or in a forked process.

        Notes:
            No host-device synchronisation. With `stats` about 10 µs.
        """
        start = time.perf_counter()
        if self._closed or os.getpid() != self._process:
            why = (
                "the monitor is closed"
                if self._closed
                else "this process was forked from the one that records"
            )
            raise RuntimeError(f"[GradMonitor.record] expected an open monitor, got a call although {why}")
        number = self._step + 1 if step is None else _as_step(step)
        if number % self.every:
            self._begin_step(number)
            return
        if stats is None:
            stats = self._measure(1.0 if inv_scale is None else float(inv_scale))
        else:
            self._check(stats, inv_scale, after_clip)
        self._begin_step(number)
        if self._recorder is None:  # another rank records
            return
        phase = "before_clip" if stats.clip_coef is not None else "after_clip" if after_clip else "measured"
        if isinstance(loss, Tensor):
            loss = _one(loss)
        rates = () if self._optimizer is None else tuple(g["lr"] for g in self._optimizer.param_groups)
        layout = self._layout_for(stats)
        capture = StepCapture(number, time.time(), layout, stats, loss, rates, phase, self._pool)
        self._recorder.submit(capture)
        if self._histogram_every and number % self._histogram_every == 0:
            self._add_histogram(number, stats)
        self._recorder.record_seconds += time.perf_counter() - start

    def flush(self) -> bool:
        """Wait until everything recorded is on disk. Synchronises. False if it cannot be written."""
        return self._recorder is None or self._recorder.flush()

    def history(self) -> History:
        """The run so far, to read. Flushes, so it synchronises."""
        self.flush()
        return History.open(self.run_dir)

    @property
    def lost(self) -> int:
        """How many steps could not be recorded."""
        return 0 if self._recorder is None else self._recorder.lost

    def diagnose(self) -> list[Any]:
        """Findings about the run so far; see `gradkern.diagnose`. Synchronises.

        Raises:
            NotImplementedError: this version of gradkern has no diagnosis.
        """
        try:
            diagnose = import_module("gradkern.diagnose").diagnose
        except ImportError as error:
            raise NotImplementedError(
                "[GradMonitor.diagnose] this version of gradkern has no diagnosis; the history is in "
                f"{str(self.run_dir)!r}"
            ) from error
        with self.history() as history:
            return list(diagnose(history))

    # ---- life ----

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint needs, so that steps keep their numbers after a resume."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a checkpoint: the next step recorded is the one after the checkpoint's.

        Steps that the history holds beyond it are replaced as they are recorded again (they stay
        in the file: ``History.open(run, superseded=True)``).
        """
        self._step = _as_step(state["step"])

    def close(self) -> None:
        """Write what is left, close the file and the sinks, take the hooks off. Twice does no harm."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        if self._tracker is not None:
            self._tracker.remove()
        if self._recorder is not None:
            self._recorder.close()
            self._lock.release()

    def __enter__(self) -> GradMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_recorder", None) is not None:
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "recording" if self._recorder else "another rank records"
        return f"GradMonitor({str(self.run_dir)!r}, step {self._step}, {state})"

    # ---- inside ----

    def _check(self, stats: GradStats, inv_scale: float | None, after_clip: bool) -> None:
        if not isinstance(stats, GradStats):
            raise TypeError(f"[GradMonitor.record] stats: expected GradStats, got {type(stats).__name__}")
        if after_clip and stats.clip_coef is not None:
            raise ValueError(
                "[GradMonitor.record] after_clip: expected False for statistics that come from clip_(), "
                "which are from before clipping; got True"
            )
        if inv_scale is not None and inv_scale != stats.inv_scale:
            raise ValueError(
                f"[GradMonitor.record] inv_scale: expected that of the statistics, {stats.inv_scale!r}, got "
                f"{inv_scale!r}; give it to measure()"
            )
        if self._norm_type is None:
            self._norm_type = stats.norm_type
            if self._recorder is not None:
                self._recorder.check_norm_type(stats.norm_type)
        elif stats.norm_type != self._norm_type:
            raise ValueError(
                f"[GradMonitor.record] stats.norm_type: expected {self._norm_type!r} as before in this run, "
                f"got {stats.norm_type!r}"
            )

    @torch.no_grad()
    def _measure(self, inv_scale: float) -> GradStats:
        params = self._plan.current()
        columns = _general.measure_columns(
            "GradMonitor.record", params, self._plan.names, 2.0, self._count_zeros, inv_scale
        )
        del columns["nonfinite_total"]
        stats = GradStats(
            names=self._plan.names,
            numel=self._plan.numel,
            has_grad=tuple(columns.pop("has_grad")),
            first=self._plan.first,
            inv_scale=inv_scale,
            **columns,
        )
        self._check(stats, None, False)
        return stats

    def _layout_for(self, stats: GradStats) -> Layout:
        source = (stats.names, stats.numel)
        if self._layout is None or not _same(source, self._layout_source):
            plan = self._plan
            plan.current()
            names = plan.names if matches_plan(stats, plan) else stats.names
            self._layout = layout_of(names, stats.numel, stats.first, plan, self._model, self._optimizer)
        self._layout_source = source
        return self._layout

    def _own_layout(self) -> Layout:
        plan = self._plan
        same = self._layout is not None and self._layout.names == plan.names
        if same and self._layout is not None and tuple(self._layout.numel.tolist()) == plan.numel:
            return self._layout
        return layout_of(plan.names, plan.numel, plan.first, plan, self._model, self._optimizer)

    def _begin_step(self, number: int) -> None:
        if self._records_first is None:
            self._records_first = True
        self._step = number

    def _optimizer_step(self) -> int:
        """The number of the step that the optimizer is in: `record` may come before or after it."""
        if self._records_first is None:
            self._records_first = False
        return self._step if self._records_first else self._step + 1

    def _update_due(self) -> bool:
        step = self._optimizer_step()
        return self._update_every > 0 and (step == 1 or step % self._update_every == 0)

    def _add_weights(self, exact: bool, norm: Tensor, ratio: Tensor) -> None:
        if self._recorder is not None and not self._closed:
            step = self._optimizer_step()
            self._recorder.submit(WeightsCapture(step, self._own_layout(), exact, norm, ratio, self._pool))

    def _add_histogram(self, step: int, stats: GradStats) -> None:
        from gradkern.monitor.histogram import histogram

        params = self._plan.current()
        if self._sample is None or self._sampled is not self._plan.names:
            self._sample, self._sampled = Sample(params), self._plan.names
        grads = [p.grad for p in params]
        counts, underflow = histogram(grads, self._sample, stats.clip_coef, stats.inv_scale)
        if self._recorder is not None:
            self._recorder.submit(HistogramCapture(step, self._own_layout(), counts, underflow, self._pool))


def _folder(run_dir: str | os.PathLike[str] | None, all_ranks: bool) -> tuple[Path, int, bool]:
    """The folder, this process's rank, and whether it records."""
    folder = Path(run_dir) if run_dir is not None else Path("gradkern-runs") / time.strftime("%Y%m%d-%H%M%S")
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if distributed else 0
    return (folder / f"rank{rank}" if all_ranks else folder), rank, all_ranks or rank == 0


def _as_step(step: Any) -> int:
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 2**62:
        raise ValueError(f"[GradMonitor] step: expected an integer of at least 0, got {step!r}")
    return step


def _one(loss: Tensor) -> float | Tensor:
    """The number, where reading it does not wait; else a tensor of one element."""
    if loss.numel() != 1:
        raise ValueError(
            f"[GradMonitor.record] loss: expected one number, got a tensor of shape {tuple(loss.shape)}"
        )
    return loss.item() if loss.is_cpu else loss.detach()


def _same(new: Sequence[Any], old: Sequence[Any]) -> bool:
    """Equal; at once where they are the very same objects, as they are from step to step."""
    return all(a is b for a, b in zip(new, old)) or tuple(new) == tuple(old)


def _there(reference: weakref.ref[GradMonitor]) -> GradMonitor:
    monitor = reference()
    assert monitor is not None  # its end takes the hooks off
    return monitor


def _close_at_exit(monitor: GradMonitor) -> None:
    reference = weakref.ref(monitor)

    def close() -> None:
        alive = reference()
        if alive is not None:
            alive.close()

    atexit.register(close)
    weakref.finalize(monitor, atexit.unregister, close)
