"""TensorBoard event files."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

from gradkern._util.optional import need
from gradkern.sinks.base import Sink


class TensorBoardSink(Sink):
    """Scalars and the heatmap as TensorBoard events, in ``RUN/tensorboard`` unless told otherwise.

    Where a run goes back to an earlier step, TensorBoard is told to drop what that folder has from
    that step on; write nothing of your own to it.

    Args:
        log_dir: the folder of the event files. It may hold events of yours, so nothing is dropped there:
            after going back a curve then has both.
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
        # As SummaryWriter does with `purge_step`, which has to be known when it is made.
        session = self._events.SessionLog(status=self._events.SessionLog.START)
        self._writer.file_writer.add_event(self._events.Event(session_log=session), step)

    def log(self, step: int, time: float, values: dict[str, float]) -> None:
        summary = self._protos.Summary()
        for key, value in values.items():
            summary.value.add(tag=key, simple_value=value)
        self._writer.file_writer.add_summary(summary, step, time)

    def image(self, step: int, key: str, png: bytes) -> None:
        width, height = struct.unpack(">II", png[16:24])
        picture = self._protos.Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=png
        )
        summary = self._protos.Summary()
        summary.value.add(tag=key, image=picture)
        self._writer.file_writer.add_summary(summary, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
