"""`TrainingMonitor`: the part that the callbacks of several frameworks share."""

from __future__ import annotations

import contextlib
import gc
import inspect
import os
import sys
import weakref
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from gradkern.integrations.ending import opened
from gradkern.integrations.torch_utils import patched_torch
from gradkern.monitor import GradMonitor
from gradkern.params.names import NamedParameters

#: Those that may still be open.
_started: weakref.WeakSet[TrainingMonitor] = weakref.WeakSet()


def check_options(operation: str, options: Iterable[str]) -> None:
    """Check that `GradMonitor` has these options.

    Raises:
        TypeError: it does not. The message has the most similar name.
    """
    params = inspect.signature(GradMonitor).parameters.values()
    known = [param.name for param in params if param.kind is param.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            similar = get_close_matches(name, known, 1)
            right = f"did you mean {similar[0]!r}?" if similar else "expected " + ", ".join(known)
            raise TypeError(f"[{operation}] {name}: GradMonitor has no such argument; {right}")


class TrainingMonitor:
    """A `GradMonitor` that is open from `start` to `stop` and records the clips meanwhile.

    Args:
        run_dir, options: arguments of `GradMonitor`.

    Raises:
        TypeError: an option that `GradMonitor` does not have.
    """

    #: Whether a DeepSpeed engine trains. Its clips, losses and steps are then recorded.
    by_engine = False

    def __init__(self, run_dir: str | os.PathLike[str] | None, options: Mapping[str, Any]) -> None:
        check_options("GradkernCallback", options)
        self.run_dir, self._options = run_dir, dict(options)
        self._open: GradMonitor | None = None
        self._stack = contextlib.ExitStack()
        self._state: Mapping[str, int] | None = None  # to continue from
        self._ended: Mapping[str, int] = {}  # of the last run, for checkpoints that are saved after it

    def start(
        self,
        model: NamedParameters,
        optimizer: Any,
        default_dir: str | os.PathLike[str] | None = None,
        engine: Any = None,
    ) -> GradMonitor:
        """Build the monitor, and patch torch or listen to the DeepSpeed engine.

        A run that is still open is closed first, also that of another callback to the same folder: its
        training was interrupted, which a Trainer does not tell.
        """
        run_dir = default_dir if self.run_dir is None else self.run_dir
        for other in list(_started):
            if other is self or other._writes_to(run_dir):
                other.stop()
        with contextlib.ExitStack() as stack:
            if engine is None:
                monitor = stack.enter_context(opened(model, optimizer, run_dir, self._options))
                stack.enter_context(patched_torch(monitor))
            else:
                from gradkern.integrations.deepspeed import monitored

                monitor = stack.enter_context(monitored(engine, run_dir, **self._options))
            if self._state is not None:
                monitor.load_state_dict(self._state)
                self._state = None
            self._stack = stack.pop_all()
        self._open, self.by_engine = monitor, engine is not None
        _started.add(self)
        return monitor

    def _writes_to(self, run_dir: str | os.PathLike[str] | None) -> bool:
        if self._open is None or run_dir is None:
            return False
        return os.path.abspath(self._open.run_dir) == os.path.abspath(run_dir)

    @property
    def monitor(self) -> GradMonitor:
        """The monitor of the current run.

        Raises:
            RuntimeError: training has not started, or has ended.
        """
        if self._open is None:
            raise RuntimeError("[GradkernCallback] monitor: exists only during training")
        return self._open

    @property
    def running(self) -> bool:
        """Whether a run is open."""
        return self._open is not None

    def stop(self) -> None:
        """Close the monitor and undo the patch. Idempotent."""
        self._ended, self._open = self.state_dict(), None
        self._stack.close()

    def state_dict(self) -> dict[str, int]:
        """The number of the last step, for a checkpoint."""
        if self._open is not None:
            return self._open.state_dict()
        return dict(self._state or self._ended)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a checkpoint, now or as soon as training starts."""
        if not state:
            return
        if self._open is not None:
            self._open.load_state_dict(state)
        else:
            self._state = dict(state)


def engine_of(model: Any) -> Any:
    """The DeepSpeed engine that trains a model; None if there is none.

    Walks all objects that the garbage collector knows, because frameworks do not pass on their engine.
    """
    package = sys.modules.get("deepspeed")
    if package is None:
        return None
    # Not isinstance: it would ask objects that give a __class__ of their own, and deprecated ones would warn.
    engines = (one for one in gc.get_objects() if issubclass(type(one), package.DeepSpeedEngine))
    return next((engine for engine in engines if engine.module is model), None)
