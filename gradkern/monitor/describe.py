"""What is noted of a run besides the numbers."""

from __future__ import annotations

import time
from typing import Any

import torch

from gradkern.version import __version__


def describe_run(
    optimizer: torch.optim.Optimizer | None,
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
        "optimizer": None if optimizer is None else type(optimizer).__name__,
        "rank": rank,
        "world_size": torch.distributed.get_world_size() if distributed else 1,
    }
