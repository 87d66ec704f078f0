"""Whether a list is one for `gradkern.distributed`, found out without importing it.

`gradkern.distributed` lies below the functions that come here and imports none of them. It is imported
inside functions, here alone, because it takes torch.distributed.tensor, which most programs never need.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from torch import Tensor


def is_dtensor(tensor: Any) -> bool:
    # Who never imported torch.distributed.tensor has no DTensor.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_distributed(tensors: Sequence[Tensor]) -> bool:
    """Whether a tensor, or the gradient of one, is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    if module is None:
        return False
    kind = module.DTensor
    return any(isinstance(t, kind) for t in tensors) or any(isinstance(t.grad, kind) for t in tensors)


def functions() -> ModuleType:
    from gradkern.distributed import functions as module

    return module


def together(*args: Any, **options: Any) -> Any:
    from gradkern.distributed.measure import Distributed

    return Distributed(*args, **options)


def written_shards(grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """What in-place operations on this rank write to: a DTensor's local tensor, else the gradient."""
    module = sys.modules.get("torch.distributed.tensor")
    if module is None or not any(isinstance(g, module.DTensor) for g in grads):
        return list(grads)
    from gradkern.distributed.placements import written_shards as local

    return local(grads)
