"""The part of `gradkern run` inside the program: patch torch, open a monitor for each clipped model."""

from __future__ import annotations

import atexit
import functools
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
from gradkern.integrations.ending import where
from gradkern.integrations.losses import Losses, LossMonitor
from gradkern.integrations.torch_utils import Patch, patch_torch
from gradkern.monitor import GradMonitor


def start(run_dir: str | os.PathLike[str] | None) -> None:
    """Patch torch, and report at the end. With `run_dir`, record each model from its first clip on."""
    program = _Program(patch_torch())
    if run_dir:
        bridge.on_unknown(functools.partial(program.open_for, Path(run_dir)))
        program.losses.install()
    atexit.register(program.report, "recorded" if run_dir else "changed")


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


class _Program:
    """A program that does not use gradkern itself: the patch, and the monitors that are opened for it."""

    def __init__(self, patch: Patch) -> None:
        self._patch, self._steps = patch, _Steps()
        self._monitors: list[GradMonitor] = []
        self.losses = Losses()

    def open_for(self, run_dir: Path, params: Sequence[Tensor]) -> GradMonitor:
        """Open a monitor for parameters that are clipped for the first time."""
        model = model_of(params)
        number = len(self._monitors) + 1
        folder = run_dir if number == 1 else run_dir / f"model{number}"
        optimizers = optimizers_of(params if model is None else list(model.parameters()))
        monitor = LossMonitor(
            params if model is None else model, optimizers[0] if len(optimizers) == 1 else optimizers, folder
        )
        monitor.losses = self.losses
        self._monitors.append(monitor)
        return monitor

    def report(self, what: str) -> None:
        """Print at the end of the program what was recorded and, if it is rank 0, what was replaced."""
        for monitor in self._monitors:
            monitor.close()
            if monitor.records:
                _tell(where(monitor))
        if self._steps.count and not bridge.called:
            _tell(_NO_CLIP.format(self._steps.count, what))
        if (self._steps.count or bridge.called) and os.environ.get("RANK", "0") == "0":
            self._report_names()

    def _report_names(self) -> None:
        public = [name for name in self._patch.replaced if name.rpartition(".")[0] == "torch.nn.utils"]
        _tell(f"replaced {', '.join(public)}" if public else "the program has undone the patch")
        older = self._patch.older
        if older:
            _tell(f"not replaced in modules that were imported before: {', '.join(older)}")


def _tell(message: str) -> None:
    print(f"gradkern run: {message}", file=sys.stderr)


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
        if issubclass(type(one), torch.optim.Optimizer) and not _wraps(one):
            owned = [rows[id(p)] for group in one.param_groups for p in group["params"] if id(p) in rows]
            if owned:
                found.append((min(owned), one))
    return [one for _, one in sorted(found, key=lambda entry: entry[0])]


def _wraps(optimizer: torch.optim.Optimizer) -> bool:
    """Whether other optimizers do the steps. Wrappers are optimizers by class only, or like torchtitan's have
    the parameters but no learning rate."""
    is_made = "_optimizer_step_pre_hooks" in vars(optimizer)
    return not (is_made and all("lr" in group for group in optimizer.param_groups))
