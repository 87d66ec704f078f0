"""`NativePolicy`: a policy as the extension takes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class NativePolicy(NamedTuple):
    """See `GroupPolicy` in csrc/bindings/policies.h."""

    kind: str
    """"nothing", "global_norm", or one of `gradkern.kernels.policy_steps`."""
    constants: tuple[float, ...] = ()
    state: Tensor | None = None
    """float64, on the CPU; what the policy remembers."""
    layers: Tensor | None = None
    """int64, one a row: "global_norm" goes layer by layer."""
    decided: Callable[[], None] | None = None
    """Called once the extension has decided by this."""


NOTHING = NativePolicy("nothing")
