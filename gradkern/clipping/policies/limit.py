"""`LimitedPolicy`: a policy with a limit that can be set between steps."""

from __future__ import annotations

import torch
from torch import Tensor

from gradkern.clipping.policies.base import Policy
from gradkern.params.arguments import as_limit


class LimitedPolicy(Policy):
    """Base class of policies with a `max_norm`, which has a copy on each device where it is used.

    Setting `max_norm` fills the copies in place, so that replays of a captured CUDA graph use the new limit.
    The copy is made in the first step on a device, which therefore has to run before the capture.
    """

    def __init__(self, max_norm: float) -> None:
        self._copies: dict[torch.device, Tensor] = {}
        self.max_norm = max_norm

    @property
    def max_norm(self) -> float:
        """The largest norm allowed. It can be set between steps."""
        return self._max_norm

    @max_norm.setter
    def max_norm(self, value: float) -> None:
        self._max_norm: float = as_limit(type(self).__name__, "max_norm", value)
        for copy in self._copies.values():
            copy.fill_(self._max_norm)

    def settings(self) -> dict[str, str | int | float]:
        return {"max_norm": self.max_norm, **super().settings()}

    def limit_on(self, device: torch.device) -> Tensor:
        """`max_norm` as a 0-d tensor, float64 if the device supports it. Every call returns the same tensor.

        Raises:
            RuntimeError: this device has no copy yet and a CUDA graph is being captured. A copy made now
                would be filled with the present limit in every replay.
        """
        copy = self._copies.get(device)
        if copy is None:
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    "[GradClipper.clip_] a CUDA graph is being captured before the first step on this "
                    "device; run clip_() once outside the graph, which puts the limit on the device"
                )
            wide = torch.float32 if device.type == "mps" else torch.float64
            copy = torch.full((), self._max_norm, dtype=wide, device=device)
            self._copies[device] = copy
        return copy
