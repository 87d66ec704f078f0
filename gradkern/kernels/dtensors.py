"""Recognise DTensors without importing torch.distributed.tensor, which most programs never need."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from torch import Tensor


def is_dtensor(tensor: Any) -> bool:
    # Without this import there are no DTensors in the program.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_distributed(tensors: Sequence[Tensor]) -> bool:
    """Whether a tensor or its gradient is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    if module is None:
        return False
    kind = module.DTensor
    return any(isinstance(t, kind) for t in tensors) or any(isinstance(t.grad, kind) for t in tensors)


def gathered(tensor: Any) -> Tensor:
    """The full tensor of a DTensor (a collective); any other tensor itself."""
    whole: Tensor = tensor.detach().full_tensor() if is_dtensor(tensor) else tensor
    return whole
