"""The policies of `GradClipper`; see `gradkern.clipping.policies`."""

from gradkern.clipping.policies import (
    AGC,
    AdaGC,
    AutoClip,
    Decision,
    ElementPolicy,
    GlobalNorm,
    PerLayerNorm,
    Policy,
    Schedule,
    SkipOutliers,
    Value,
    ZClip,
    custom,
)

__all__ = [
    "AGC",
    "AdaGC",
    "AutoClip",
    "Decision",
    "ElementPolicy",
    "GlobalNorm",
    "PerLayerNorm",
    "Policy",
    "Schedule",
    "SkipOutliers",
    "Value",
    "ZClip",
    "custom",
]
