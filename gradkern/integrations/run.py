"""The part of `gradkern run` inside the program: patch torch, open a monitor for each clipped model."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from gradkern.integrations import bridge
from gradkern.integrations.torch_utils import patch_torch
from gradkern.monitor import GradMonitor


def start(run_dir: str | os.PathLike[str] | None) -> None:
    """Patch torch. With `run_dir`, record each model from its first clip on."""
    patch, steps = patch_torch(), _Steps()
    found = _Monitors(Path(run_dir)) if run_dir else None
    if found is not None:
        bridge.on_unknown(found.open_for)

    def report() -> None:
        if found is not None:
            found.report()
        if steps.count and not bridge.called:
            _tell(_NO_CLIP.format(steps.count, "recorded" if found else "changed"))
        if found is not None and patch.older:
            _tell(f"not reached, as they were imported before: {', '.join(patch.older)}")

    atexit.register(report)


_NO_CLIP = (
    "{} steps of an optimizer and no call of torch.nn.utils.clip_grad_norm_ were seen, so nothing was {}. A "
    "script that does not clip can be recorded with GradMonitor. DeepSpeed, FSDP1 and Megatron clip by "
    "themselves, and calls inside a compiled graph are not seen: see docs/frameworks"
)


class _Steps:
    """Counts the steps of all optimizers. A program that has none, such as a launcher, does not train."""

    def __init__(self) -> None:
        self.count = 0
        register_optimizer_step_post_hook(self._add)

    def _add(self, *_: Any) -> None:
        if not torch.compiler.is_compiling():
            self.count += 1


def _tell(message: str) -> None:
    print(f"gradkern run: {message}", file=sys.stderr)


class _Monitors:
    """The monitors that are opened for a program which does not use gradkern itself."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._monitors: list[GradMonitor] = []

    def open_for(self, params: Sequence[Tensor]) -> GradMonitor:
        """Open a monitor for parameters that are clipped for the first time."""
        model = model_of(params)
        number = len(self._monitors) + 1
        folder = self._run_dir if number == 1 else self._run_dir / f"model{number}"
        optimizers = optimizers_of(params if model is None else list(model.parameters()))
        monitor = GradMonitor(
            params if model is None else model, optimizers[0] if len(optimizers) == 1 else optimizers, folder
        )
        self._monitors.append(monitor)
        return monitor

    def report(self) -> None:
        """Print what was recorded, at the end of the program."""
        for monitor in self._monitors:
            monitor.close()
            if monitor.records:
                _tell(f"{monitor.step} steps recorded in {monitor.run_dir}")


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
