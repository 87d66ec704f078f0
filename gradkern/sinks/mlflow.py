"""`MlflowSink`: sends the numbers of a run to MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradkern._util.optional import need
from gradkern.diagnosis import notice_of
from gradkern.sinks.base import Sink, apart

BATCH = 1000  # MLflow's limit of metrics per call
TAG = 500  # characters of a tag; the artifact has the full text


class MlflowSink(Sink):
    """Log metrics, the heatmap, findings and alerts to an MLflow run.

    The tags ``gradkern.finding``, ``gradkern.rollback`` and ``gradkern.stop`` hold the last warning or severe
    finding, the last rollback and the last stop, so that runs can be searched by them. The artifact
    ``gradkern/findings.json`` has every finding with its remedies.

    Args:
        tracking_uri: server or ``file:`` folder. Default: that of MLflow.
        experiment: name of the experiment, which is created if it does not exist.
        run_id: an existing run. Default: the active run; if there is none, a run is created, and ended when
            the monitor is closed.
        options: as in `Sink`.

    Raises:
        ImportError: mlflow is not installed (gradkern[mlflow]).

    Notes:
        MLflow's file store cannot hold both ``grad_norm`` and ``grad_norm/<param>``, so the second is called
        ``grad_norm_of/<param>``. ``loss`` and ``lr`` are called ``gradkern/loss`` and ``gradkern/lr``,
        because the run may have its own.

        Recent versions of MLflow refuse the file store (``file:`` folders, ``./mlruns``) unless the
        environment variable ``MLFLOW_ALLOW_FILE_STORE=true`` is set.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment: str = "gradkern",
        run_id: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._mlflow = need("mlflow", "mlflow", "mlflow", "MlflowSink")
        self._uri, self._experiment, self._given, self._run_id = tracking_uri, experiment, run_id, run_id
        self._own = False
        self._client: Any = None
        self._findings: list[dict[str, Any]] = []

    @property
    def run_id(self) -> str | None:
        """The run that is logged to; None before a monitor uses this sink."""
        return self._run_id

    def open(self, run_dir: Path) -> None:
        self._client = self._mlflow.MlflowClient(tracking_uri=self._uri)
        active = self._mlflow.active_run()
        self._run_id, self._own, self._findings = self._given, False, []  # not those of an earlier monitor
        if self._run_id is None and active is not None and self._uri is None:
            self._run_id = active.info.run_id
        if self._run_id is None:
            found = self._client.get_experiment_by_name(self._experiment)
            number = found.experiment_id if found else self._client.create_experiment(self._experiment)
            self._run_id = self._client.create_run(number, run_name=run_dir.name).info.run_id
            self._own = True

    def log(self, step: int, time: float, values: dict[str, float]) -> None:
        metric = self._mlflow.entities.Metric
        metrics = [metric(_key(key), value, int(1000 * time), step) for key, value in values.items()]
        for first in range(0, len(metrics), BATCH):
            self._client.log_batch(self._run_id, metrics=metrics[first : first + BATCH])

    def image(self, step: int, key: str, pixels: NDArray[np.uint8]) -> None:
        self._client.log_image(self._run_id, pixels, artifact_file=f"gradkern/{key}.png")

    def event(self, step: int, time: float, kind: str, data: dict[str, Any]) -> None:
        super().event(step, time, kind, data)
        notice = notice_of(step, kind, data)
        if notice.is_alert:
            said = f"{notice.title} ({notice.severity}, step {step}): {notice.text}"
            self._client.set_tag(self._run_id, f"gradkern.{kind}", said[:TAG])
        if kind == "finding":
            self._findings.append(data)
            self._client.log_dict(self._run_id, {"findings": self._findings}, "gradkern/findings.json")

    def close(self) -> None:
        if self._own:
            self._client.set_terminated(self._run_id)


def _key(key: str) -> str:
    """The name of a metric. MLflow allows letters, digits and ``_-. :/`` only."""
    key = apart(key)
    if key.startswith("grad_norm"):
        key = key.replace("/", "_of/", 1)
    return "".join(c if (c.isalnum() and c.isascii()) or c in "_-. :/" else "_" for c in key)
