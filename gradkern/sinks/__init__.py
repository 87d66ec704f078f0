"""Where a monitor sends its numbers besides the history: loggers that people already use.

Each needs its package only when it is made; importing this imports none of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

from gradkern.sinks.base import Sink

_SINKS = {
    "JsonlSink": "gradkern.sinks.jsonl",
    "TensorBoardSink": "gradkern.sinks.tensorboard",
    "WandbSink": "gradkern.sinks.wandb",
    "MlflowSink": "gradkern.sinks.mlflow",
}
_SHORT = {
    "jsonl": "JsonlSink",
    "tensorboard": "TensorBoardSink",
    "wandb": "WandbSink",
    "mlflow": "MlflowSink",
}

__all__ = ["JsonlSink", "MlflowSink", "Sink", "TensorBoardSink", "WandbSink", "make_sinks"]


def __getattr__(name: str) -> Any:
    if name in _SINKS:
        return getattr(import_module(_SINKS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def make_sinks(sinks: Iterable[Sink | str]) -> list[Sink]:
    """Sinks, with names ("jsonl", "tensorboard", "wandb", "mlflow") turned into sinks with defaults.

    Raises:
        TypeError: `sinks` is no list of sinks and names.
    """
    made: list[Sink] = []
    if not isinstance(sinks, Iterable):
        raise TypeError(f"[GradMonitor] sinks: expected a list of sinks, got {sinks!r}")
    for index, sink in enumerate([sinks] if isinstance(sinks, str) else sinks):
        if isinstance(sink, str) and sink in _SHORT:
            made.append(__getattr__(_SHORT[sink])())
        elif isinstance(sink, Sink):
            made.append(sink)
        else:
            raise TypeError(
                f"[GradMonitor] sinks[{index}]: expected a Sink or one of {', '.join(_SHORT)}, got {sink!r}"
            )
    return made
