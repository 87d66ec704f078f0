"""Weights & Biases."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from gradkern._util.optional import need
from gradkern.sinks.base import ENDINGS, Sink, apart

STEP = "grad_step"


class WandbSink(Sink):
    """Metrics and the heatmap to a Weights & Biases run.

    W&B's own step counts rows and only ever grows; these rows come some tenths of a second late. They
    therefore have their own x-axis, ``grad_step``, the number of the optimizer step. The keys ``loss``
    and ``lr`` are ``gradkern/loss`` and ``gradkern/lr`` here: the run may have its own.

    Warning:
        Log your own numbers to the same run **without** ``step=``: each row that is sent here moves
        W&B's step on, and W&B drops rows with a step that is below it. For your own x-axis::

            run.define_metric("train/*", step_metric="train/step")
            run.log({"train/loss": loss, "train/step": n})

        If you must use ``step=``, give this sink a run of its own:
        ``WandbSink(run=wandb.init(reinit="create_new", group=…))``. Where ``step=`` is noticed, it is
        warned of, and rows are from then on added to the row that you are logging: none of yours is
        dropped, and of those sent here between two of yours the last remains (an update ratio then
        stands at that one's ``grad_step``).

    Args:
        run: the run to log to; by default the current one (`wandb.run`), and if there is none, one
            that is made (and finished) here.
        init: arguments of `wandb.init` for that, ``{"project": …, "mode": "offline"}`` say.
        options: as in `Sink`.

    Raises:
        ImportError: wandb is not installed (gradkern[wandb]).
    """

    def __init__(self, run: Any = None, init: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._wandb = need("wandb", "wandb", "wandb", "WandbSink")
        self._given, self._init = run, dict(init or {})
        self._run, self._own = run, False
        self._folder = Path(".")
        self._steps_given = False

    def open(self, run_dir: Path) -> None:
        self._folder = run_dir
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

    def image(self, step: int, key: str, png: bytes) -> None:
        file = self._folder / f"{key}.png"
        file.write_bytes(png)
        self._add({STEP: step, key: self._wandb.Image(str(file))})

    def close(self) -> None:
        if self._own:
            self._run.finish()
            self._run, self._own = None, False  # a later monitor gets a new one

    def _add(self, row: dict[str, Any]) -> None:
        if not self._steps_given and _steps_given(self._run):
            self._steps_given = True
            warnings.warn(
                "[WandbSink] run: expected a run that is logged to without step=, got one with; rows of "
                "yours may have been dropped by W&B, and gradient rows are thinned out from now on. Leave "
                "step= away (define_metric gives you an x-axis), or give WandbSink a run of its own",
                RuntimeWarning,
                stacklevel=2,
            )
        # Without commit W&B's step stays where the user's own rows put it.
        self._run.log(row, commit=not self._steps_given)


def _steps_given(run: Any) -> bool:
    """Whether anybody has called ``run.log(…, step=…)``: W&B notes it, for its own statistics."""
    try:
        return bool(run._telemetry_obj.feature.set_step_log)
    except AttributeError:  # another version of wandb
        return False
