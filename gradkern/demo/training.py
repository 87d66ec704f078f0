"""A training run and its record."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradkern._util import moved
from gradkern.clipping.clipper import GradClipper
from gradkern.demo.cost import ClipCost
from gradkern.demo.models import LSTMModel, TransformerModel
from gradkern.demo.text import ALPHABET, Batches
from gradkern.diagnosis import Finding, diagnose
from gradkern.history.facade import History
from gradkern.monitor import GradMonitor
from gradkern.params.stats import GradStats

BATCH, LENGTH, MOMENTUM = 16, 48, 0.9

#: A finite run counts as diverged if its loss exceeds this multiple of the first loss, which is that of a
#: uniform guess.
DIVERGED = 4.0


@dataclass(frozen=True)
class Setting:
    """A model and a learning rate at which it blows up without clipping, for any seed."""

    name: str
    title: str
    learning_rate: float
    make: Callable[[], nn.Module]


SETTINGS = {
    "lstm": Setting("lstm", "LSTM", 1.5, lambda: LSTMModel(len(ALPHABET))),
    "transformer": Setting(
        "transformer", "transformer", 1.0, lambda: TransformerModel(len(ALPHABET), LENGTH)
    ),
}


@dataclass
class DemoRun:
    """The record of one run. Lists have one entry for each step; norms are from before clipping."""

    setting: Setting
    max_norm: float
    layers: tuple[str, ...] = ()
    numel: tuple[int, ...] = ()
    loss: list[float] = field(default_factory=list)
    total_norm: list[float] = field(default_factory=list)
    clip_coef: list[float] = field(default_factory=list)
    layer_norm: list[list[float]] = field(default_factory=list)
    nonfinite: list[list[int]] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    cost: ClipCost | None = None
    folder: Path = Path()
    """The folder that the monitor recorded to."""
    findings: list[Finding] = field(default_factory=list)
    """The findings of its diagnosis."""

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(self.loss)

    @property
    def clipping(self) -> bool:
        """Whether this run clips at all."""
        return math.isfinite(self.max_norm)

    @property
    def clipped_steps(self) -> list[int]:
        """The steps, counted from 1, that were clipped."""
        return [step for step, coef in enumerate(self.clip_coef, 1) if not coef >= 1]

    def first_nonfinite(self) -> tuple[int, list[str]] | None:
        """The first step, from 1, with inf or NaN in a gradient, and the layers that hold it.

        The layers are in the order in which gradients reach them: from the loss backwards.
        """
        for step, counts in enumerate(self.nonfinite, 1):
            if any(counts):
                return step, [name for name, count in zip(self.layers, counts) if count][::-1]
        return None

    def verdict(self) -> str:
        """How the run ended, in words."""
        last = self.loss[-1]
        if not math.isfinite(last):
            return f"blew up: loss {last} at step {self.steps} (it started at {self.loss[0]:.3f})"
        if last > DIVERGED * self.loss[0]:
            return f"diverged: loss {self.loss[0]:.3g} to {last:.3g} in {self.steps} steps"
        if last < self.loss[0]:
            return f"trained: loss {self.loss[0]:.3f} to {last:.3f} in {self.steps} steps"
        return f"did not learn: loss {self.loss[0]:.3f} to {last:.3f} in {self.steps} steps"


Progress = Callable[[DemoRun, int], None]


def _record(run: DemoRun, loss: float, stats: GradStats) -> None:
    layers = stats.by_layer(depth=2)
    run.layers, run.numel = layers.names, layers.numel
    run.loss.append(loss)
    run.total_norm.append(stats.total_norm.item())
    run.clip_coef.append(1.0 if stats.clip_coef is None else stats.clip_coef.item())
    run.layer_norm.append(layers.norm.tolist())
    run.nonfinite.append(layers.nonfinite.tolist())


def train(
    setting: Setting,
    data: Tensor,
    folder: Path,
    *,
    steps: int,
    max_norm: float,
    seed: int,
    time_clipping: bool = False,
    progress: Progress | None = None,
) -> DemoRun:
    """Train with SGD and momentum for `steps` steps, or until the loss is NaN, because the weights are NaN
    then. The run is recorded and diagnosed.

    Args:
        setting: model and learning rate.
        data: the text, int64 [characters].
        folder: where the run is recorded.
        steps: the largest number of steps.
        max_norm: for `GradClipper`; inf only measures.
        seed: of the initial weights and the batches. Runs with the same seed differ in clipping only.
        time_clipping: also time clipping, on copies of the gradients of each step (`ClipCost`).
        progress: called after every step with the run and `steps`.
    """
    torch.manual_seed(seed)
    model = setting.make()
    batches = Batches(data, BATCH, LENGTH, seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=setting.learning_rate, momentum=MOMENTUM)
    clipper = GradClipper(model, max_norm)
    run = DemoRun(setting, max_norm, folder=folder)
    if time_clipping:
        run.cost = ClipCost(list(model.parameters()), clipper)
    with GradMonitor(model, optimizer, folder) as monitor:
        _loop(run, steps, model, batches, optimizer, clipper, monitor, progress)
    with History.open(folder) as history:
        run.findings = diagnose(history)
    return run


def _loop(
    run: DemoRun,
    steps: int,
    model: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    clipper: GradClipper,
    monitor: GradMonitor,
    progress: Progress | None,
) -> None:
    for _ in range(steps):
        started = time.perf_counter()
        inputs, targets = batches.draw()
        loss = functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        paused = run.cost.sample() if run.cost else 0.0
        stats = clipper.clip_()
        monitor.record(stats, loss=loss)
        optimizer.step()
        run.step_seconds.append(time.perf_counter() - started - paused)
        _record(run, loss.item(), stats)
        if progress:
            progress(run, steps)
        if math.isnan(run.loss[-1]):
            break


if not TYPE_CHECKING:
    __getattr__ = moved.forward(__name__)  # names of 0.1
