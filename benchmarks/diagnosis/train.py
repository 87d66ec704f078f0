"""Training runs: recorded by a GradMonitor into a folder, and traced beside it in plain torch.

The extras of a recipe that act here, "name:argument" with steps counted from 1:
    nan_batch:K, inf_batch:K    one input element of step K is not finite
    nan_loss:K                  the loss of step K takes the root of a negative number
    nan_gradient:NAME           one element of that parameter's gradient is NaN from step 20 on
    spike:K                     the inputs of step K are multiplied by 300, its targets by 30
    loss_factor:F               the loss is multiplied by F before backward (a weight in a sum of losses)
    inflate:F                   weights are multiplied by F after each step (a weight decay of the wrong sign)
    no_zero_grad, no_step, ascend (the sign is wrong), restart (the model starts from a trained state)
    no_loss, no_optimizer       the monitor does not get it
    drop_in                     gradkern.clip_grad_norm_ clips, in place of a GradClipper
    unstepped                   of several optimizers only the first one steps
    sharp:R                     gradients are those at weights R up the gradient (sharpness-aware)
    lookahead:K                 every K steps the weights go half of the way back to slow ones
    noise:S                     noise of S times the rms is added to each gradient
    outlier:K                   the targets of step K are multiplied by 300
and those of `spoilers`.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import pickle
import shutil
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gradkern
from benchmarks.diagnosis.build import build_model, build_optimizers, build_task, rate_at
from benchmarks.diagnosis.loops import Lookahead, add_noise, sharpened
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.spoilers import Spoiler, spoil_loss
from benchmarks.diagnosis.trace import Trace, Tracer

__all__ = ["Run", "train"]

ROOT = Path(__file__).resolve().parents[2]
Run = tuple[Path, Trace]


def train(recipe: Recipe, seed: int, folder: Path, *, reuse: bool = False) -> Run:
    """The recorded run and its trace; read from `folder` if this version of the code has made it before.

    Args:
        reuse: also use a run that another version of the code has made.

    Returns:
        (folder of the run, trace).
    """
    place = folder / hashlib.sha1(f"{recipe!r}/{seed}".encode()).hexdigest()[:16]
    done = place / "trace.pickle"
    version = place / "version"
    if not done.exists() or not (reuse or version.read_text() == _version()):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        trace = _Training(recipe, seed, place).run()
        version.write_text(_version())
        done.write_bytes(pickle.dumps(trace))
    return place, pickle.loads(done.read_bytes())


@cache
def _version() -> str:
    """A hash of all code that a run depends on."""
    here = Path(__file__).parent
    names = ("recipe", "tasks", "models", "sequences", "special", "initialize", "build", "train", "trace")
    files = [here / f"{name}.py" for name in (*names, "loops", "spoilers")]
    labels = ("cases", "draw", "faults", "healthy", "second")
    files += sorted(f for f in (here / "sets").rglob("*.py") if f.stem not in labels)
    for room in ("monitor", "history", "clipping", "params"):
        files += sorted((ROOT / "gradkern" / room).rglob("*.py"))
    digest = hashlib.sha1()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


class _Training:
    """One run of a recipe."""

    def __init__(self, recipe: Recipe, seed: int, place: Path) -> None:
        torch.set_num_threads(1)
        self.recipe = recipe
        self.model = build_model(recipe, seed)
        self.task = build_task(recipe, seed)
        self.optimizers = build_optimizers(recipe, self.model)
        if recipe.extra("restart") is not None:
            self._train_first()
        every = recipe.extra("lookahead")
        self.lookahead = Lookahead(self.model, int(every)) if every else None
        self.spoiler = Spoiler(recipe)
        self.tracer = Tracer(self.model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            told = None if recipe.extra("no_optimizer") is not None else self.optimizers
            self.monitor = gradkern.GradMonitor(self.model, told, place)
            self.clipper = gradkern.GradClipper(self.model, recipe.max_norm, on_nonfinite=recipe.on_nonfinite)

    def run(self) -> Trace:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for step in range(self.recipe.steps):
                    self._step(step)
        finally:
            self.monitor.close()
        return self.tracer.result()

    def _train_first(self) -> None:
        for _ in range(300):
            self.task.loss(self.model, self.task.batch()).backward()
            for optimizer in self.optimizers:
                optimizer.step()
            self.model.zero_grad()

    def _step(self, step: int) -> None:
        recipe = self.recipe
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * group.get("factor", 1.0) * rate_at(recipe, step)
        self.tracer.begin_step(step)
        loss = self._backward_of_loop(step)
        self.tracer.after_backward(float(loss) / recipe.target_scale**2, recipe.loss_scale)
        skip = self._clip_and_record(loss)
        if recipe.extra("no_step") is None and not skip:
            for optimizer in self.optimizers[: 1 if recipe.extra("unstepped") is not None else None]:
                optimizer.step()
        if self.lookahead is not None:
            self.lookahead.step()
        inflation = recipe.extra("inflate")
        if inflation is not None:
            with torch.no_grad():
                for p in self.model.parameters():
                    p.mul_(float(inflation))
        if recipe.extra("no_zero_grad") is None:
            self.model.zero_grad()

    def _clip_and_record(self, loss: float | Tensor | None) -> bool:
        """Clips and records; returns whether the step has to be skipped."""
        recipe, inv_scale = self.recipe, 1 / self.recipe.loss_scale
        loss = None if recipe.extra("no_loss") is not None else loss
        if recipe.extra("drop_in") is not None:
            gradkern.clip_grad_norm_(self.model.parameters(), recipe.max_norm)
            self.monitor.record(loss=loss)
            return False
        if math.isfinite(recipe.max_norm) or recipe.on_nonfinite != "propagate":
            stats = self.clipper.clip_()
            self.monitor.record(stats, loss=loss)
            return recipe.on_nonfinite == "skip" and not math.isfinite(float(stats.total_norm))
        self.monitor.record(loss=loss, inv_scale=inv_scale)
        if inv_scale != 1:
            for p in self.model.parameters():
                if p.grad is not None:
                    p.grad.mul_(inv_scale)
        return False

    def _backward_of_loop(self, step: int) -> float | Tensor:
        """`_backward`, followed by what the loop does with gradients before they are clipped."""
        batches = [self._spoil(self.task.batch(), step + 1) for _ in range(self.recipe.accumulate)]
        loss = self._backward(step, batches)
        radius, noise = self.recipe.extra("sharp"), self.recipe.extra("noise")
        if radius:
            with sharpened(self.model, float(radius)):
                loss = self._backward(step, batches)
        if noise:
            add_noise(self.model, float(noise))
        return loss

    def _backward(self, step: int, batches: list[Any]) -> float | Tensor:
        """Returns the loss to record: a tensor with its graph, or a number if it is a sum of several."""
        recipe, total = self.recipe, 0.0
        for batch in batches:
            with self._precision():
                loss = self.task.loss(self.model, batch) / recipe.accumulate
            loss = spoil_loss(loss, self.model, recipe, step + 1)
            if recipe.extra("nan_loss") == str(step + 1):
                loss = loss + (loss - 2 * loss.detach() - 1).sqrt()
            sign = -1.0 if recipe.extra("ascend") is not None else 1.0
            factor = float(recipe.extra("loss_factor") or 1)
            (loss * (sign * factor * recipe.loss_scale)).backward()
            total += float(loss.detach())
        name = recipe.extra("nan_gradient")
        if name and step >= 20:
            self.model.get_parameter(name).grad.view(-1)[0] = math.nan
        return loss if recipe.accumulate == 1 else total

    def _spoil(self, batch: Any, step: int) -> Any:
        x, y = self.spoiler(*batch, step)
        if self.recipe.extra("nan_batch") == str(step):
            x = x.clone().index_fill_(0, torch.tensor([0]), math.nan)
        if self.recipe.extra("inf_batch") == str(step):
            x = x.clone().index_fill_(0, torch.tensor([0]), math.inf)
        if self.recipe.extra("spike") == str(step):
            x, y = x * 300, y * 30 if y.is_floating_point() else y
        if self.recipe.extra("outlier") == str(step):
            y = y * 300
        if self.recipe.precision in ("float16", "bfloat16") and x.is_floating_point():
            x = x.to(getattr(torch, self.recipe.precision))
        return x, y

    def _precision(self) -> contextlib.AbstractContextManager[None]:
        if self.recipe.precision.startswith("amp_"):
            return torch.autocast("cpu", dtype=getattr(torch, self.recipe.precision.removeprefix("amp_")))
        return contextlib.nullcontext()
