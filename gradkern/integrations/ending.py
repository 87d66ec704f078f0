"""The line that tells, at the end of training, where the recorded run is and how to read its diagnosis."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch.distributed as dist

from gradkern.monitor import GradMonitor


@contextlib.contextmanager
def opened(
    model: Any, optimizer: Any, run_dir: str | os.PathLike[str] | None, options: Mapping[str, Any]
) -> Iterator[GradMonitor]:
    """A `GradMonitor` for a with-block. At its end the first rank prints where the run is."""
    first = not (dist.is_available() and dist.is_initialized() and dist.get_rank())
    monitor = GradMonitor(model, optimizer, run_dir, **options)
    try:
        yield monitor
    finally:
        monitor.close()
        if first:
            print(f"gradkern: {where(monitor)}", file=sys.stderr)


def where(monitor: GradMonitor) -> str:
    """Up to which step a run is recorded in which folder, and the command that diagnoses it."""
    folder = shlex.quote(str(monitor.run_dir))
    if not monitor.step:
        return f"no step was recorded in {folder}"
    return f"recorded up to step {monitor.step} in {folder}; for findings: gradkern diagnose {folder}"
