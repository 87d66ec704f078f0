"""Finding DTensors without importing torch.distributed.tensor, which most programs never need."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from torch import Tensor


def is_dtensor(tensor: Any) -> bool:
    # A program that never imported torch.distributed.tensor has no DTensor.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_distributed(tensors: Sequence[Tensor]) -> bool:
    """Whether a tensor, or the gradient of one, is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    if module is None:
        return False
    kind = module.DTensor
    return any(isinstance(t, kind) for t in tensors) or any(isinstance(t.grad, kind) for t in tensors)


def gathered(tensor: Any) -> Tensor:
    """The whole tensor of a DTensor; any other tensor as it is."""
    whole: Tensor = tensor.detach().full_tensor() if is_dtensor(tensor) else tensor
    return whole
