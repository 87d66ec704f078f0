"""The folder of a run: the one given, or a new one that all ranks agree on."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from pathlib import Path

import torch

from gradkern._util.warning import LOGGER
from gradkern.history.format import as_folder, making
from gradkern.monitor.ranks import made_by_rank_0


def run_folder(run_dir: str | os.PathLike[str] | None, all_ranks: bool) -> tuple[Path, int, bool]:
    """The folder of this process's run, its rank, and whether it records.

    Without `run_dir` a new folder is made, and its path is logged. With `all_ranks` the ranks then agree on
    it: a collective.

    Raises:
        TypeError: `run_dir` is not a path.
        HistoryError: the new folder cannot be made.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if distributed else 0
    if run_dir is not None:
        folder = as_folder(run_dir, "GradMonitor")
    else:
        folder = Path("gradkern-runs") / time.strftime("%Y%m%d-%H%M%S")
        if distributed and all_ranks:
            folder = made_by_rank_0(lambda: new_folder(folder))
        elif rank == 0:
            folder = new_folder(folder)
        if rank == 0:
            LOGGER.info("[GradMonitor] run_dir: none was given, so the run is recorded to %r", str(folder))
    return (folder / f"rank{rank}" if all_ranks else folder), rank, all_ranks or rank == 0


def new_folder(wanted: Path) -> Path:
    """Make a folder that did not exist: "name", or else "name-2", "name-3", …"""
    with making(wanted):
        wanted.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                break
        return folder
