"""gradkern: gradient norms of every tensor, layer and the model in one read, clipping, monitoring."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradkern import _lazy
from gradkern._load import build_info
from gradkern.clipper import GradClipper
from gradkern.functional import (
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
    get_total_norm,
)
from gradkern.measure import measure
from gradkern.patch import patch_torch, patched_torch, unpatch_torch
from gradkern.stats import GradStats
from gradkern.version import __version__

if TYPE_CHECKING:
    from gradkern import distributed as distributed
    from gradkern.monitor import GradMonitor, History, HistoryError
else:  # what not every program needs
    _HOMES = dict.fromkeys(("GradMonitor", "History", "HistoryError"), "gradkern.monitor")
    __getattr__, __dir__ = _lazy.attach(__name__, _HOMES, submodules=["distributed"])

__all__ = [
    "GradClipper",
    "GradMonitor",
    "GradStats",
    "History",
    "HistoryError",
    "__version__",
    "build_info",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "get_total_norm",
    "measure",
    "patch_torch",
    "patched_torch",
    "unpatch_torch",
]
