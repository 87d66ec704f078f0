"""Progress of training: one updating line on a terminal, a few lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TextIO

from gradkern.demo.training import DemoRun

#: Seconds between two updates on a terminal, and lines a run elsewhere.
_REFRESH, _LINES = 0.1, 5


class Progress:
    """Shows the progress of a run. As a context manager it leaves the last state on the screen.

    Args:
        out: the stream to write to; None shows nothing.
    """

    def __init__(self, out: TextIO | None) -> None:
        self._out = out
        self._terminal = out is not None and out.isatty()
        self._started = time.perf_counter()
        self._shown = 0.0
        self._width = 0
        self._line = self._last_line = ""

    def __call__(self, run: DemoRun, steps: int) -> None:
        """Update the display if that is due. Called after every step."""
        if self._out is None:
            return
        now = time.perf_counter()
        self._line = _describe(run, steps, now - self._started)
        if self._terminal:
            if now - self._shown >= _REFRESH:
                self._shown = now
                self._overwrite()
        elif run.steps == 1 or run.steps % max(1, steps // _LINES) == 0:
            self._append()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._out is None or not self._line:
            return
        if self._terminal:
            self._overwrite()
            self._out.write("\n")
            self._out.flush()
        elif self._line != self._last_line:
            self._append()

    def _overwrite(self) -> None:
        assert self._out is not None
        self._out.write("\r" + self._line.ljust(self._width))
        self._out.flush()
        self._width = len(self._line)

    def _append(self) -> None:
        assert self._out is not None
        self._last_line = self._line
        self._out.write(self._line + "\n")
        self._out.flush()


def _describe(run: DemoRun, steps: int, seconds: float) -> str:
    how = f"max_norm {run.max_norm:g}" if run.clipping else "no clipping"
    done = (
        f"{run.setting.title:11}  {how:13}  step {run.steps:4}/{steps}  loss {run.loss[-1]:<9.4g}"
        f"  norm {run.total_norm[-1]:<9.3g}"
    )
    return f"{done}  clipped {len(run.clipped_steps):3}  {seconds:5.1f} s"
