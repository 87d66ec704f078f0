"""Loggers for a monitor: JSON lines, TensorBoard, Weights & Biases, MLflow, Trackio.

The package of a logger is imported when the sink is created.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING

from gradkern._util import lazy
from gradkern.sinks.base import Sink

_SHORT = {
    "jsonl": "JsonlSink",
    "tensorboard": "TensorBoardSink",
    "wandb": "WandbSink",
    "mlflow": "MlflowSink",
    "trackio": "TrackioSink",
}

if TYPE_CHECKING:
    from gradkern.sinks.jsonl import JsonlSink
    from gradkern.sinks.mlflow import MlflowSink
    from gradkern.sinks.tensorboard import TensorBoardSink
    from gradkern.sinks.trackio import TrackioSink
    from gradkern.sinks.wandb import WandbSink
else:
    _HOMES = {sink: f"gradkern.sinks.{short}" for short, sink in _SHORT.items()}
    __getattr__, __dir__ = lazy.attach(__name__, _HOMES)

__all__ = ["JsonlSink", "MlflowSink", "Sink", "TensorBoardSink", "TrackioSink", "WandbSink", "make_sinks"]


def make_sinks(sinks: Iterable[Sink | str]) -> list[Sink]:
    """The sinks of a monitor. A name ("jsonl", "tensorboard", "wandb", "mlflow", "trackio") becomes the sink
    of that name with its default arguments.

    Raises:
        TypeError: `sinks` is not a list of sinks and names.
        ImportError: the package of a named logger is not installed.
    """
    made: list[Sink] = []
    if not isinstance(sinks, Iterable):
        raise TypeError(f"[GradMonitor] sinks: expected a list of sinks, got {sinks!r}")
    for index, sink in enumerate([sinks] if isinstance(sinks, str) else sinks):
        if isinstance(sink, str) and sink in _SHORT:
            made.append(getattr(import_module(f"{__name__}.{sink}"), _SHORT[sink])())
        elif isinstance(sink, Sink):
            made.append(sink)
        else:
            raise TypeError(
                f"[GradMonitor] sinks[{index}]: expected a Sink or one of {', '.join(_SHORT)}, got {sink!r}"
            )
    return made
