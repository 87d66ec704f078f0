"""`Value`: clamp every element."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from gradkern.clipping.policies.base import ElementPolicy
from gradkern.clipping.policies.checks import Check
from gradkern.clipping.policies.native import NativePolicy
from gradkern.clipping.route import written_shards
from gradkern.kernels.backend import C
from gradkern.kernels.scale import clamp_
from gradkern.params.arguments import as_limit


class Value(ElementPolicy):
    """Clamp every element to ``[-clip_value, clip_value]``, as `clip_grad_value_` does. NaN stays NaN.

    Args:
        clip_value: the limit, not negative. It can be set between steps.

    Raises:
        TypeError, ValueError: an invalid argument. In `GradClipper.clip_`, TypeError if a gradient is
            complex, or sparse and not coalesced.
    """

    _checks: ClassVar[Mapping[str, Check]] = {"clip_value": as_limit}

    def __init__(self, clip_value: float = 1.0) -> None:
        self.clip_value = clip_value

    def native(self, names: tuple[str, ...]) -> NativePolicy | None:
        return NativePolicy("value", (self.clip_value,))

    def check(self, operation: str, params: Sequence[Tensor], names: Sequence[str]) -> None:
        for param, name in zip(params, names):
            grad = param.grad
            if grad is not None and grad.is_complex():
                raise TypeError(
                    f"[{operation}] '{name}': expected a real gradient for the policy Value (complex numbers "
                    f"have no order), got {grad.dtype}"
                )
            if grad is not None and grad.layout is torch.sparse_coo and not grad.is_coalesced():
                raise TypeError(
                    f"[{operation}] '{name}': expected a dense or a coalesced sparse gradient for the policy "
                    "Value, got an uncoalesced one (its duplicate indices add up after clamping); call "
                    ".coalesce() on it"
                )

    def apply_(
        self,
        operation: str,
        params: Sequence[Tensor],
        shards: Sequence[Tensor | None] | None,
        names: Sequence[str],
    ) -> Tensor | None:
        limit = self.clip_value
        if shards is None:
            with contextlib.suppress(TypeError):  # raised below, with the parameter's name
                if C.clip_grad_value_(params, limit):
                    return None
            shards = written_shards([p.grad for p in params])
        for shard, name in zip(shards, names):
            if shard is not None and shard.is_complex():
                raise TypeError(
                    f"[{operation}] '{name}': expected a real gradient for the policy Value (complex numbers "
                    f"have no order), got {shard.dtype}"
                )
        clamp_(shards, limit)
        return None
