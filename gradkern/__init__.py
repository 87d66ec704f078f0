"""gradkern: gradient norms of every tensor, layer and the model in one read, clipping, monitoring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    from gradkern.monitor import GradMonitor, History, HistoryError

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

_LAZY = {
    "GradMonitor": "gradkern.monitor",
    "History": "gradkern.monitor",
    "HistoryError": "gradkern.monitor",
}


def __getattr__(name: str) -> Any:
    """What not every program needs is imported when it is asked for."""
    from importlib import import_module

    if name == "distributed":
        return import_module("gradkern.distributed")
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
