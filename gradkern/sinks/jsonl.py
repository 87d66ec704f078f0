"""`JsonlSink`: a file with one JSON object for each step and event."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, TextIO

from gradkern.history.format import write_json
from gradkern.sinks.base import Sink


class JsonlSink(Sink):
    """Append one JSON object per step to a file.

    Update ratios are a separate object with the same ``step``. An event is an object with ``step``,
    ``time``, ``event`` (its kind) and ``data``. NaN and infinities, which JSON lacks, are the strings "NaN",
    "Infinity" and "-Infinity", or null in the data of events.

    Args:
        path: the file. Default: ``metrics.jsonl`` in the folder of the run.
        options: as in `Sink`.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, **options: Any) -> None:
        super().__init__(**{"heatmap_every": 0, **options})
        self._path = None if path is None else Path(path)
        self._file: TextIO | None = None

    def open(self, run_dir: Path) -> None:
        self._file = (self._path or run_dir / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)

    def log(self, step: int, time: float, values: dict[str, float]) -> None:
        numbers = {key: _plain(value) for key, value in values.items()}
        self._write(json.dumps({"step": step, "time": time, **numbers}, allow_nan=False))

    def event(self, step: int, time: float, kind: str, data: dict[str, Any]) -> None:
        self._write(write_json({"step": step, "time": time, "event": kind, "data": data}))

    def _write(self, line: str) -> None:
        assert self._file is not None
        self._file.write(line + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _plain(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
