"""gradkern: gradient norms of every tensor, layer and the model in one read, clipping, diagnosis."""

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

__all__ = [
    "GradClipper",
    "GradStats",
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
