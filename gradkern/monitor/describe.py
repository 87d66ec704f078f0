"""`describe_run`: metadata of a run: versions, arguments, ranks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from gradkern.monitor.models.optimizers import Optimizers
from gradkern.monitor.recording import Options
from gradkern.version import __version__


def describe_run(optimizers: Optimizers, options: Options, rank: int, parts: Sequence[str]) -> dict[str, Any]:
    """Entries of `History.meta`."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return {
        "gradkern": __version__,
        "torch": torch.__version__,
        "opened": time.time(),
        "every": options.every,
        "update_every": options.update_every,
        "histogram_every": options.histogram_every,
        "optimizer": ", ".join(type(optimizer).__name__ for optimizer in optimizers.values()) or None,
        "parts": list(parts),
        "rank": rank,
        "world_size": torch.distributed.get_world_size() if distributed else 1,
    }
