"""Clipping policies, public as `gradkern.policies`.

A policy decides from the statistics of the gradients how they are clipped. Pass it to a clipper,
``GradClipper(model, policy=ZClip())``, or to a group of a clipper,
``GradClipper(model, groups={"matrices": (selector, AGC(0.01)), …})``. A policy with state must not be shared
between clippers or groups.

`Decision.factor` is what a policy asks for, `GradStats.factor` what each gradient was multiplied by, and
`GradStats.clip_coef` the smallest of these. A loss scale is in none of them.
"""

from gradkern.clipping.policies.adagc import AdaGC
from gradkern.clipping.policies.agc import AGC
from gradkern.clipping.policies.autoclip import AutoClip
from gradkern.clipping.policies.base import ElementPolicy, Policy
from gradkern.clipping.policies.custom import custom
from gradkern.clipping.policies.decision import Decision, SettledDecision, settled
from gradkern.clipping.policies.global_norm import GlobalNorm
from gradkern.clipping.policies.per_layer import PerLayerNorm
from gradkern.clipping.policies.schedule import Schedule
from gradkern.clipping.policies.skip_outliers import SkipOutliers
from gradkern.clipping.policies.value import Value
from gradkern.clipping.policies.zclip import ZClip

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
    "SettledDecision",
    "SkipOutliers",
    "Value",
    "ZClip",
    "custom",
    "settled",
]
