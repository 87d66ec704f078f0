"""`TensorBoardSink`: writes the numbers of a run to TensorBoard event files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradkern._util.optional import need
from gradkern.diagnosis import notice_of
from gradkern.sinks.base import Sink


class TensorBoardSink(Sink):
    """Log scalars, the heatmap and, as text, findings and other events to TensorBoard.

    If a run goes back to an earlier step, TensorBoard drops the events from that step on.

    Args:
        log_dir: the folder of the event files. Default: ``tensorboard`` in the folder of the run. Nothing is
            dropped from a folder that you name, because it may hold your own events. After going back, a
            curve then shows both courses.
        options: as in `Sink`.

    Raises:
        ImportError: tensorboard is not installed (gradkern[tensorboard]).
    """

    def __init__(self, log_dir: str | os.PathLike[str] | None = None, **options: Any) -> None:
        super().__init__(**options)
        who = "TensorBoardSink"
        self._writers = need("torch.utils.tensorboard", "tensorboard", "tensorboard", who)
        self._events = need("tensorboard.compat.proto.event_pb2", "tensorboard", "tensorboard", who)
        self._protos = need("tensorboard.compat.proto.summary_pb2", "tensorboard", "tensorboard", who)
        self._log_dir = log_dir
        self._writer: Any = None

    def open(self, run_dir: Path) -> None:
        self._writer = self._writers.SummaryWriter(log_dir=str(self._log_dir or run_dir / "tensorboard"))

    def begin_at(self, step: int) -> None:
        if self._log_dir is not None:
            return
        # Does what `purge_step` of SummaryWriter does, which can only be set at construction.
        session = self._events.SessionLog(status=self._events.SessionLog.START)
        self._writer.file_writer.add_event(self._events.Event(session_log=session), step)

    def log(self, step: int, time: float, values: dict[str, float]) -> None:
        summary = self._protos.Summary()
        for key, value in values.items():
            summary.value.add(tag=key, simple_value=value)
        self._writer.file_writer.add_summary(summary, step, time)

    def image(self, step: int, key: str, pixels: NDArray[np.uint8]) -> None:
        self._writer.add_image(key, pixels, step, dataformats="HWC")

    def event(self, step: int, time: float, kind: str, data: dict[str, Any]) -> None:
        super().event(step, time, kind, data)
        if {"count", "last_step"} <= data.keys():  # a repetition; the first one was written
            return
        notice = notice_of(step, kind, data)
        text = f"**{notice.title}** ({notice.severity}, step {step})\n\n{notice.text}"
        self._writer.add_text(f"gradkern/{kind}", text, step, walltime=time)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
