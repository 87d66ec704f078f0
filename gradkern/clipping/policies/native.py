"""`NativePolicy`: a policy in the form that the extension takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class NativePolicy(NamedTuple):
    """The arguments of `GroupPolicy` in csrc/bindings/policies.h."""

    kind: str
    """"nothing", "global_norm", "value", "agc", or one of `gradkern.kernels.policy_steps`."""
    constants: tuple[float, ...] = ()
    state: Tensor | None = None
    """The state of the policy: float64, on the CPU."""
    layers: Tensor | None = None
    """int64 [N]: the layer of each row, if "global_norm" limits each layer by itself."""
    decided: Callable[[], None] | None = None
    """Called after the extension has decided."""


NOTHING = NativePolicy("nothing")
