"""Weights & Biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradkern.sinks._optional import need
from gradkern.sinks.base import ENDINGS, Sink

STEP = "grad_step"


class WandbSink(Sink):
    """Metrics and the heatmap to a Weights & Biases run.

    W&B's own step only ever grows and counts calls of `log`; these metrics therefore have their own
    x-axis, ``grad_step``, the number of the optimizer step. Log your own metrics to the same run
    without ``step=``, or to another run.

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
        self._run, self._init, self._own = run, dict(init or {}), False
        self._folder = Path(".")

    def open(self, run_dir: Path) -> None:
        self._folder = run_dir
        self._run = self._run or self._wandb.run
        if self._run is None:
            self._run = self._wandb.init(**{"dir": str(run_dir), **self._init})
            self._own = True
        self._run.define_metric(STEP, hidden=True)
        keys = ("grad_norm", "grad_rms", "update_ratio", "clip", "grad_nonfinite")
        others = [f"{key}{ending}" for key in keys[:2] for ending in ENDINGS.values() if ending]
        for key in [*keys, *others]:
            self._run.define_metric(f"{key}/*", step_metric=STEP)
            self._run.define_metric(key, step_metric=STEP)

    def log(self, step: int, time: float, values: dict[str, float]) -> None:
        self._run.log({STEP: step, **values})

    def image(self, step: int, key: str, png: bytes) -> None:
        file = self._folder / f"{key}.png"
        file.write_bytes(png)
        self._run.log({STEP: step, key: self._wandb.Image(str(file))})

    def close(self) -> None:
        if self._own:
            self._run.finish()
