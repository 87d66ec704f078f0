"""What is noted of a run besides the numbers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from gradkern.version import __version__


def describe_run(
    optimizers: Sequence[torch.optim.Optimizer],
    every: int,
    update_every: int,
    histogram_every: int | None,
    rank: int,
) -> dict[str, Any]:
    """Entries of `History.meta`."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return {
        "gradkern": __version__,
        "torch": torch.__version__,
        "opened": time.time(),
        "every": every,
        "update_every": update_every,
        "histogram_every": histogram_every,
        "optimizer": ", ".join(type(optimizer).__name__ for optimizer in optimizers) or None,
        "rank": rank,
        "world_size": torch.distributed.get_world_size() if distributed else 1,
    }
