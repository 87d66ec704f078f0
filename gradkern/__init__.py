"""gradkern: norms of every gradient, every layer and the model in one read; clipping, monitoring, diagnosis.

Names are imported on first use, so that recorded runs can be read without importing torch.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from gradkern._util import lazy, moved
from gradkern._util.warning import GradkernWarning
from gradkern.version import __version__

if TYPE_CHECKING:
    from gradkern import compat as compat
    from gradkern import diagnosis as diagnosis
    from gradkern import distributed as distributed
    from gradkern import history as history
    from gradkern import integrations as integrations
    from gradkern import monitor as monitor
    from gradkern import policies as policies
    from gradkern import report as report
    from gradkern import sinks as sinks
    from gradkern.clipping.adaptive import adaptive_clip_grad_
    from gradkern.clipping.clipper import GradClipper
    from gradkern.clipping.functional import (
        clip_grad_norm_,
        clip_grad_value_,
        clip_grads_with_norm_,
        get_total_norm,
    )
    from gradkern.clipping.measure import measure
    from gradkern.diagnosis import DiagnosisError, Finding, Remedy, diagnose
    from gradkern.history import History, HistoryError
    from gradkern.integrations.torch_utils import patch_torch, patched_torch, unpatch_torch
    from gradkern.kernels.extension import build_info
    from gradkern.monitor import GradMonitor
    from gradkern.monitor.noise_scale import GradientNoiseScale, NoiseScale
    from gradkern.monitor.over_time import GradientOverTime
    from gradkern.monitor.rollback import RollbackError, RollbackGuard
    from gradkern.params.stats import GradStats

__all__ = [
    "DiagnosisError",
    "Finding",
    "GradClipper",
    "GradMonitor",
    "GradStats",
    "GradientNoiseScale",
    "GradientOverTime",
    "GradkernWarning",
    "History",
    "HistoryError",
    "NoiseScale",
    "Remedy",
    "RollbackError",
    "RollbackGuard",
    "__version__",
    "adaptive_clip_grad_",
    "build_info",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "diagnose",
    "get_total_norm",
    "measure",
    "patch_torch",
    "patched_torch",
    "unpatch_torch",
]

if not TYPE_CHECKING:
    _HOMES = {
        "DiagnosisError": "gradkern.diagnosis",
        "Finding": "gradkern.diagnosis",
        "GradClipper": "gradkern.clipping.clipper",
        "GradMonitor": "gradkern.monitor.monitor",
        "GradStats": "gradkern.params.stats",
        "GradientOverTime": "gradkern.monitor.over_time",
        "GradientNoiseScale": "gradkern.monitor.noise_scale",
        "History": "gradkern.history",
        "HistoryError": "gradkern.history",
        "NoiseScale": "gradkern.monitor.noise_scale",
        "Remedy": "gradkern.diagnosis",
        "RollbackError": "gradkern.monitor.rollback",
        "RollbackGuard": "gradkern.monitor.rollback",
        "adaptive_clip_grad_": "gradkern.clipping.adaptive",
        "build_info": "gradkern.kernels.extension",
        "clip_grad_norm_": "gradkern.clipping.functional",
        "clip_grad_value_": "gradkern.clipping.functional",
        "clip_grads_with_norm_": "gradkern.clipping.functional",
        "diagnose": "gradkern.diagnosis",
        "get_total_norm": "gradkern.clipping.functional",
        "measure": "gradkern.clipping.measure",
        "patch_torch": "gradkern.integrations.torch_utils",
        "patched_torch": "gradkern.integrations.torch_utils",
        "unpatch_torch": "gradkern.integrations.torch_utils",
    }
    _POLICIES = (
        "AGC", "AdaGC", "AutoClip", "Decision", "ElementPolicy", "GlobalNorm", "PerLayerNorm", "Policy",
        "Schedule", "SkipOutliers", "Value", "ZClip", "custom",
    )  # fmt: skip
    _PACKAGES = (
        "compat", "diagnosis", "distributed", "history", "integrations", "monitor", "policies", "report",
        "sinks",
    )  # fmt: skip
    __getattr__, __dir__ = lazy.attach(
        __name__, _HOMES, submodules=_PACKAGES, elsewhere={"policies": _POLICIES}
    )

moved.install()
if sys.modules.get("torch") is not None:  # a training program: register the operators now
    from gradkern.clipping import functional as _functional  # noqa: F401
