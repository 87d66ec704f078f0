"""`TrackioSink`: sends the numbers of a run to Trackio, a local experiment tracker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradkern._util.optional import need
from gradkern.diagnosis import notice_of
from gradkern.sinks.base import Sink, apart

LEVELS = {"severe": "ERROR", "warning": "WARN"}


class TrackioSink(Sink):
    """Log metrics, the heatmap and alerts to a Trackio run.

    Warnings and severe findings of the diagnosis, rollbacks and stops are sent as alerts
    (`trackio.Run.alert`). ``loss`` and ``lr`` are called ``gradkern/loss`` and ``gradkern/lr``, because the
    run may have its own.

    Args:
        run: the run to log to. Default: the current one (of `trackio.init`); if there is none, a run is
            created, and finished when the monitor is closed.
        init: arguments of `trackio.init` for a run that is created. The default project is "gradkern".
        options: as in `Sink`.

    Raises:
        ImportError: trackio is not installed (gradkern[trackio]).
    """

    def __init__(self, run: Any = None, init: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._trackio = need("trackio", "trackio", "trackio", "TrackioSink")
        self._given, self._init = run, dict(init or {})
        self._run: Any = None
        self._own = False

    def open(self, run_dir: Path) -> None:
        current = self._trackio.context_vars.current_run  # known in this thread, not in the one that logs
        self._run, self._own = self._given or current.get(), False
        if self._run is None:
            self._run = self._trackio.init(**{"project": "gradkern", "name": run_dir.name, **self._init})
            self._own = True
            current.set(None)  # the run is only the sink's, and another thread finishes it

    def log(self, step: int, time: float, values: dict[str, float]) -> None:
        self._run.log({apart(key): value for key, value in values.items()}, step=step)

    def image(self, step: int, key: str, pixels: NDArray[np.uint8]) -> None:
        self._run.log({key: self._trackio.Image(pixels)}, step=step)

    def event(self, step: int, time: float, kind: str, data: dict[str, Any]) -> None:
        super().event(step, time, kind, data)
        notice = notice_of(step, kind, data)
        if notice.is_alert:
            level = self._trackio.AlertLevel[LEVELS[notice.severity]]
            self._run.alert(title=notice.title, text=notice.text, level=level, step=step)

    def close(self) -> None:
        if self._own:
            self._run.finish()
            self._run, self._own = None, False  # a later monitor gets a new one
