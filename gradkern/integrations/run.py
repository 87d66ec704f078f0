"""The part of `gradkern run` inside the program: patch torch, open a monitor for each clipped model."""

from __future__ import annotations

import atexit
import functools
import gc
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from gradkern.integrations import bridge
from gradkern.integrations.ending import where
from gradkern.integrations.torch_utils import Patch, patch_torch
from gradkern.monitor import GradMonitor


def start(run_dir: str | os.PathLike[str] | None) -> None:
    """Patch torch, and report at the end. With `run_dir`, record each model from its first clip on."""
    program = _Program(patch_torch())
    if run_dir:
        bridge.on_unknown(functools.partial(program.open_for, Path(run_dir)))
    atexit.register(program.report, bool(run_dir))


class _Program:
    """A program that does not use gradkern itself: the patch, and the monitors that are opened for it."""

    def __init__(self, patch: Patch) -> None:
        self._patch = patch
        self._monitors: list[GradMonitor] = []

    def open_for(self, run_dir: Path, params: Sequence[Tensor]) -> GradMonitor:
        """Open a monitor for parameters that are clipped for the first time."""
        model = model_of(params)
        number = len(self._monitors) + 1
        folder = run_dir if number == 1 else run_dir / f"model{number}"
        optimizers = optimizers_of(params if model is None else list(model.parameters()))
        monitor = GradMonitor(
            params if model is None else model, optimizers[0] if len(optimizers) == 1 else optimizers, folder
        )
        self._monitors.append(monitor)
        return monitor

    def report(self, wanted: bool) -> None:
        """Print at the end of the program what was recorded and, in its first process, what was replaced."""
        for monitor in self._monitors:
            monitor.close()
            if monitor.records:
                _say(where(monitor))
        if not _is_first():
            return
        if wanted and not self._monitors:
            _say("nothing is recorded, because this process called no clipping function of torch.nn.utils")
        public = [name for name in self._patch.replaced if name.rpartition(".")[0] == "torch.nn.utils"]
        _say(f"replaced {', '.join(public)}" if public else "the program has undone the patch")
        older = self._patch.older
        if older:
            _say(f"not replaced in modules that were imported before: {', '.join(older)}")


def _say(text: str) -> None:
    print(f"gradkern run: {text}", file=sys.stderr)


def _is_first() -> bool:
    """Whether this is neither another rank, nor a worker, nor torchrun itself."""
    agent = "torch.distributed.elastic.agent.server.local_elastic_agent"
    is_rank_0 = os.environ.get("RANK", "0") == "0"
    return is_rank_0 and multiprocessing.parent_process() is None and agent not in sys.modules


def model_of(params: Sequence[Tensor]) -> nn.Module | None:
    """The module with the most of these parameters and, among equals, the fewest others; None if none has
    any. Walks all objects that the garbage collector knows."""
    wanted = {id(p) for p in params}
    best, best_key = None, (0, 0, 0)
    for module in gc.get_objects():
        # Not isinstance: it would ask objects that give a __class__ of their own.
        if not issubclass(type(module), nn.Module):
            continue
        theirs = {id(p) for p in module.parameters()}
        common = len(theirs & wanted)
        size = sum(1 for _ in module.modules())
        key = (common, common - len(theirs), size)
        if common and key > best_key:
            best, best_key = module, key
    return best


def optimizers_of(params: Sequence[Tensor]) -> list[torch.optim.Optimizer]:
    """The optimizers of these parameters, in the order of the first parameter of each."""
    rows = {id(p): row for row, p in enumerate(params)}
    found: list[tuple[int, torch.optim.Optimizer]] = []
    for one in gc.get_objects():
        # Wrappers are optimizers by class only.
        if issubclass(type(one), torch.optim.Optimizer) and "_optimizer_step_pre_hooks" in vars(one):
            owned = [rows[id(p)] for group in one.param_groups for p in group["params"] if id(p) in rows]
            if owned:
                found.append((min(owned), one))
    return [one for _, one in sorted(found, key=lambda entry: entry[0])]
