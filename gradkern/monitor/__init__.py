"""Recording gradient statistics of a training run."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from gradkern.monitor.monitor import GradMonitor

__all__ = ["GradMonitor"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in ("History", "HistoryError"):  # moved in 0.2
            from gradkern import history

            new = f"gradkern.{name}"
            warnings.warn(f"gradkern.monitor.{name} has moved to {new}", DeprecationWarning, stacklevel=2)
            return getattr(history, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
