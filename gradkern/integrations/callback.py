"""`TrainingMonitor`: the part that the callbacks of several frameworks share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from gradkern.integrations.torch_utils import patched_torch
from gradkern.monitor import GradMonitor
from gradkern.params.names import NamedParameters


class TrainingMonitor:
    """A `GradMonitor` that is open from `start` to `stop`, with `torch.nn.utils` patched meanwhile.

    Args:
        run_dir, options: arguments of `GradMonitor`.
    """

    def __init__(self, run_dir: str | os.PathLike[str] | None, options: Mapping[str, Any]) -> None:
        self.run_dir, self._options = run_dir, dict(options)
        self._open: GradMonitor | None = None
        self._patch: Any = None
        self._state: Mapping[str, int] | None = None

    def start(
        self, model: NamedParameters, optimizer: Any, default_dir: str | os.PathLike[str] | None = None
    ) -> GradMonitor:
        """Build the monitor and patch torch. A run that is still open is closed first."""
        self.stop()
        run_dir = default_dir if self.run_dir is None else self.run_dir
        monitor = GradMonitor(model, optimizer, run_dir, **self._options)
        if self._state is not None:
            monitor.load_state_dict(self._state)
            self._state = None
        self._patch = patched_torch(monitor)
        self._patch.__enter__()
        self._open = monitor
        return monitor

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
        monitor, self._open = self._open, None
        if monitor is not None:
            self._patch.__exit__(None, None, None)
            monitor.close()

    def state_dict(self) -> dict[str, int]:
        """The number of the last step, for a checkpoint."""
        if self._open is not None:
            return self._open.state_dict()
        return dict(self._state or {})

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a checkpoint, now or as soon as training starts."""
        if not state:
            return
        if self._open is not None:
            self._open.load_state_dict(state)
        else:
            self._state = dict(state)
