"""What remedies change: one table from actions to changes of a recipe, the same for every case.

Actions that ask a person to look ("check_data") count as done: the fault that they would find is removed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.diagnosis.build import rate_at
from benchmarks.diagnosis.faulty import Case
from benchmarks.diagnosis.judge import Verdict
from benchmarks.diagnosis.labels import reaches
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.score import evidence_of
from benchmarks.diagnosis.train import train
from gradkern.diagnosis import Remedy, diagnose

__all__ = ["ADVICE", "CURES", "Outcome", "try_cures"]

Cure = Callable[[Recipe, Remedy], Recipe]
_POISON = ("nan_batch", "inf_batch", "nan_loss", "nan_gradient", "spike", "outlier", "surge", "far_input")
_POISON += ("nan_target", "log_zero", "blank", "noise_inputs", "alternating")
_POISON += ("root_zero", "nan_feature", "raw_batch", "one_class")
_POISON += ("holes", "flat", "exp_loss", "logged", "static", "sentinel", "sentinels")
#: Faults of the first weights, which another initialization removes.
_WEIGHTS = ("dead", "negative", "stuck", "loud", "fill", "states")


def _set(**values: object) -> Cure:
    return lambda recipe, remedy: dataclasses.replace(recipe, **values)  # type: ignore[arg-type]


def _drop(*extras: str) -> Cure:
    return lambda recipe, remedy: dataclasses.replace(recipe, extras=recipe.without(*extras))


def _rate(recipe: Recipe, remedy: Remedy) -> Recipe:
    """Multiply or set the learning rate as the remedy's code does."""
    found = re.search(r'"lr"\] (\*?)= ([-+.e\d]+)', remedy.code)
    times, value = (found[1], float(found[2])) if found else ("*", 0.1)
    return dataclasses.replace(recipe, lr=recipe.lr * value if times else value)


def _limit(recipe: Recipe, remedy: Remedy) -> Recipe:
    found = re.search(r"max_norm=([-+.e\d]+)", remedy.code)
    return dataclasses.replace(recipe, max_norm=float(found[1]) if found else 1.0)


def _decay(recipe: Recipe, remedy: Remedy) -> Recipe:
    """Set the weight decay as the remedy's code does, which may replace Adam by AdamW."""
    found = re.search(r"weight_decay(?:\"\])? ?= ?([-+.e\d]+)", remedy.code)
    decoupled = recipe.optimizer == "adam" and "torch.optim.AdamW(" in remedy.code
    kind = "adamw" if decoupled else recipe.optimizer
    return dataclasses.replace(recipe, weight_decay=float(found[1]) if found else 0.0, optimizer=kind)


def _initialized(name: str) -> Cure:
    return lambda recipe, remedy: dataclasses.replace(recipe, init=name, extras=recipe.without(*_WEIGHTS))


def _full_precision(recipe: Recipe, remedy: Remedy) -> Recipe:
    kind = "amp_bfloat16" if recipe.precision.endswith("bfloat16") else "float32"
    return dataclasses.replace(recipe, precision=kind)


#: The remedies that a recipe can follow.
CURES: dict[str, Cure] = {
    "relu": _set(activation="relu", init="he"),
    "leaky_relu": _set(activation="leaky_relu"),
    "residual": _set(residual=True),
    "normalization": _set(norm="layer"),
    "he_init": _initialized("he"),
    "xavier_init": _initialized("xavier"),
    "table_init": _drop("coarse"),
    "orthogonal_init": _initialized("orthogonal"),
    "zero_bias": _drop("dead", "stuck", "fill"),
    "clip": _limit,
    "raise_max_norm": _limit,
    "lower_lr": _rate,
    "raise_lr": _rate,
    "check_schedule": lambda recipe, remedy: dataclasses.replace(
        recipe,
        schedule="constant" if recipe.schedule in ("growing", "plunging") else recipe.schedule,
    ),
    "less_momentum": _set(momentum=0.9),
    "shuffle": _drop("one_class"),
    "find_lr": _set(schedule="range", lr=1.0, warmup=0, steps=100),
    "warmup": lambda recipe, remedy: dataclasses.replace(recipe, warmup=recipe.steps // 4),
    "zero_grad": _drop("no_zero_grad"),
    "loss_scaling": _set(precision="amp_float16", loss_scale=65536.0),
    "bfloat16": _set(precision="amp_bfloat16"),
    "float32_weights": _full_precision,
    "weight_decay": lambda recipe, remedy: dataclasses.replace(
        _decay(recipe, remedy), extras=recipe.without("inflate", "praise")
    ),
    "less_weight_decay": _decay,
    "scale_inputs": lambda recipe, remedy: dataclasses.replace(
        recipe, input_scale=1.0, extras=recipe.without("columns", "sentinels")
    ),
    "scale_targets": _set(target_scale=1.0),
    "skip_nonfinite": _set(on_nonfinite="skip"),
    "check_data": _drop(*_POISON),
    "check_labels": _drop("random_labels", "late_labels", "alternating", "rolled"),
    "check_sign": _drop("ascend", "praise", "weight"),
    "use_parameters": _drop("detach", "unused", "zero_down", "cut", "blocked", "signed", "hard", "spare"),
    "add_to_optimizer": _drop("missing", "standing", "unstepped"),
    "call_step": _drop("no_step"),
}
#: Actions that a recipe cannot follow.
ADVICE = (
    "record_in_time",
    "plain_outputs",
    "gated",
    "open_forget_gate",
    "fewer_layers",
    "freeze",
    "overfit_one_batch",
)


def found_rate(recipe: Recipe, losses: NDArray[np.floating]) -> float:
    """A tenth of the rate at which the loss of a range test was lowest, by medians of seven steps."""
    known = np.where(np.isfinite(losses), losses, np.inf)
    smooth = [float(np.median(known[max(i - 3, 0) : i + 4])) for i in range(len(known))]
    return recipe.lr * rate_at(recipe, int(np.argmin(smooth))) / 10


@dataclass(frozen=True)
class Outcome:
    """What the first two remedies of a case did."""

    name: str
    seed: int
    kind: str
    actions: tuple[str, ...]
    cured_by: int
    """1 or 2; 0 if neither cures."""


def try_cures(case: Case, verdict: Verdict, folder: Path, reuse: bool) -> Outcome:
    """Follow the headline's first remedy, then its second one instead."""
    remedies = verdict.found[0].remedies[:2] if verdict.hit else ()
    cured = next((i for i, r in enumerate(remedies, 1) if _cures(case, r, verdict, folder, reuse)), 0)
    return Outcome(case.name, verdict.seed, verdict.kind, tuple(r.action for r in remedies), cured)


def _cures(case: Case, remedy: Remedy, verdict: Verdict, folder: Path, reuse: bool) -> bool:
    """Whether the symptom is gone, by the trace and by `diagnose`, and the loss reaches the twin's."""
    if remedy.action not in CURES:
        return False
    recipe = CURES[remedy.action](case.recipe, remedy)
    if recipe.schedule == "range":
        losses = train(recipe, verdict.seed, folder, reuse=reuse)[1].loss
        recipe = dataclasses.replace(case.recipe, lr=found_rate(recipe, losses))
    run, trace = train(recipe, verdict.seed, folder, reuse=reuse)
    twin = train(case.twin, verdict.seed, folder, reuse=reuse)[1]
    if case.label.symptom(trace, twin) is not None or not reaches(trace, twin):
        return False
    return not any(f.is_alarm and f.kind in case.label.kinds for f in diagnose(evidence_of(run)))
