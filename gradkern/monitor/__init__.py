"""Recording gradient statistics of a training run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradkern._util import moved
from gradkern.monitor.monitor import GradMonitor

__all__ = ["GradMonitor"]

if not TYPE_CHECKING:
    __getattr__ = moved.forward(__name__)
