"""`WandbSink`: sends the numbers of a run to Weights & Biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradkern._util.optional import need
from gradkern._util.warning import warn
from gradkern.diagnosis import notice_of
from gradkern.sinks.base import ENDINGS, Sink, apart

STEP = "grad_step"


class WandbSink(Sink):
    """Log metrics, the heatmap and alerts to a Weights & Biases run.

    Warnings and severe findings of the diagnosis, rollbacks and stops are sent as alerts (`wandb.Run.alert`).
    W&B shows them on the page of the run and can forward them by e-mail or Slack. All events are counted in
    ``gradkern/events/<kind>``.

    Warning:
        Log your own numbers to the same run **without** ``step=``. Every row of this sink advances W&B's
        step, and W&B drops rows with a smaller step. For your own x-axis::

            run.define_metric("train/*", step_metric="train/step")
            run.log({"train/loss": loss, "train/step": n})

        If you need ``step=``, use a separate run for this sink:
        ``WandbSink(run=wandb.init(reinit="create_new", group=…))``.

    Args:
        run: the run to log to. Default: the current one (`wandb.run`); if there is none, a run is created,
            and finished when the monitor is closed.
        init: arguments of `wandb.init` for a run that is created, for example ``{"mode": "offline"}``.
        options: as in `Sink`.

    Raises:
        ImportError: wandb is not installed (gradkern[wandb]).

    Warns:
        RuntimeWarning: somebody logs to the same run with ``step=``. From then on the rows of this sink are
            merged into yours. None of yours is dropped from then on, and of several rows between two of yours
            the last one remains.

    Notes:
        The x-axis is ``grad_step``, the number of the optimizer step. W&B's own step cannot be used, because
        it only grows and rows arrive some tenths of a second late. ``loss`` and ``lr`` are called
        ``gradkern/loss`` and ``gradkern/lr``, because the run may have its own.
    """

    def __init__(self, run: Any = None, init: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._wandb = need("wandb", "wandb", "wandb", "WandbSink")
        self._given, self._init = run, dict(init or {})
        self._run, self._own = run, False
        self._steps_given = False

    def open(self, run_dir: Path) -> None:
        self._run, self._steps_given = self._given or self._wandb.run, False  # not an earlier monitor's
        if self._run is None:
            self._run = self._wandb.init(**{"dir": str(run_dir), **self._init})
            self._own = True
        self._run.define_metric(STEP, hidden=True)
        keys = ("grad_norm", "grad_rms", "update_ratio", "clip", "gradkern", "grad_nonfinite")
        others = [f"{key}{ending}" for key in keys[:2] for ending in ENDINGS.values() if ending]
        for key in [*keys, *others]:
            self._run.define_metric(f"{key}/*", step_metric=STEP)
            self._run.define_metric(key, step_metric=STEP)

    def log(self, step: int, time: float, values: dict[str, float]) -> None:
        self._add({STEP: step, **{apart(key): value for key, value in values.items()}})

    def image(self, step: int, key: str, pixels: NDArray[np.uint8]) -> None:
        self._add({STEP: step, key: self._wandb.Image(pixels)})

    def event(self, step: int, time: float, kind: str, data: dict[str, Any]) -> None:
        super().event(step, time, kind, data)
        notice = notice_of(step, kind, data)
        if notice.is_alert:
            level = "ERROR" if notice.severity == "severe" else "WARN"
            self._run.alert(title=f"{notice.title} (step {step})", text=notice.text, level=level)

    def close(self) -> None:
        if self._own:
            self._run.finish()
            self._run, self._own = None, False  # a later monitor gets a new one

    def _add(self, row: dict[str, Any]) -> None:
        if not self._steps_given and _steps_given(self._run):
            self._steps_given = True
            warn(
                "[WandbSink] run: something logs to this run with step=. W&B may have dropped your rows, and "
                "gradient rows are merged into yours from now on. Log without step= (define_metric sets the "
                "x-axis), or use a separate run for WandbSink",
                RuntimeWarning,
            )
        # Without commit W&B's step stays where the user's own rows put it.
        self._run.log(row, commit=not self._steps_given)


def _steps_given(run: Any) -> bool:
    """Whether ``run.log(…, step=…)`` was called; W&B records that in its telemetry."""
    try:
        return bool(run._telemetry_obj.feature.set_step_log)
    except AttributeError:  # another version of wandb
        return False
