"""Build the model, the task, the optimizers and the learning rate schedule of a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.diagnosis import models, sequences, special
from benchmarks.diagnosis.initialize import initialize
from benchmarks.diagnosis.loops import Lion
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.eighth.dense import EIGHTH_DENSE
from benchmarks.diagnosis.sets.eighth.images import EIGHTH_IMAGES
from benchmarks.diagnosis.sets.eighth.sequences import EIGHTH_SEQUENCES
from benchmarks.diagnosis.sets.fifth.attention import FIFTH_ATTENTION
from benchmarks.diagnosis.sets.fifth.codes import FIFTH_CODES
from benchmarks.diagnosis.sets.fifth.dense import FIFTH_DENSE
from benchmarks.diagnosis.sets.fifth.optimizers import FIFTH_OPTIMIZERS
from benchmarks.diagnosis.sets.fifth.sequences import FIFTH_SEQUENCES
from benchmarks.diagnosis.sets.fifth.spatial import FIFTH_SPATIAL
from benchmarks.diagnosis.sets.fifth.training import FIFTH_TRAININGS
from benchmarks.diagnosis.sets.fifth.weights import FIFTH_WEIGHTS
from benchmarks.diagnosis.sets.fourth.attention import FOURTH_ATTENTION
from benchmarks.diagnosis.sets.fourth.dense import FOURTH_DENSE
from benchmarks.diagnosis.sets.fourth.fields import FOURTH_FIELDS
from benchmarks.diagnosis.sets.fourth.games import FOURTH_GAMES
from benchmarks.diagnosis.sets.fourth.images import FOURTH_IMAGES
from benchmarks.diagnosis.sets.fourth.sequences import FOURTH_SEQUENCES
from benchmarks.diagnosis.sets.fourth.training import FOURTH_TRAININGS
from benchmarks.diagnosis.sets.ninth.attention import NINTH_ATTENTION
from benchmarks.diagnosis.sets.ninth.columns import NINTH_COLUMNS
from benchmarks.diagnosis.sets.ninth.dense import NINTH_DENSE
from benchmarks.diagnosis.sets.ninth.images import NINTH_IMAGES
from benchmarks.diagnosis.sets.ninth.recurrent import NINTH_RECURRENT
from benchmarks.diagnosis.sets.ninth.training import NINTH_TRAININGS
from benchmarks.diagnosis.sets.reported.models import UNSEEN
from benchmarks.diagnosis.sets.reported.training import UNSEEN_TRAININGS
from benchmarks.diagnosis.sets.seventh.dense import SEVENTH_DENSE
from benchmarks.diagnosis.sets.seventh.images import SEVENTH_IMAGES
from benchmarks.diagnosis.sets.seventh.pictures import SEVENTH_PICTURES
from benchmarks.diagnosis.sets.seventh.sequences import SEVENTH_SEQUENCES
from benchmarks.diagnosis.sets.seventh.training import SEVENTH_TRAININGS
from benchmarks.diagnosis.sets.sixth.dense import SIXTH_DENSE
from benchmarks.diagnosis.sets.sixth.images import SIXTH_IMAGES
from benchmarks.diagnosis.sets.sixth.links import SIXTH_LINKS
from benchmarks.diagnosis.sets.sixth.sequences import SIXTH_SEQUENCES
from benchmarks.diagnosis.sets.sixth.training import SIXTH_TRAININGS
from benchmarks.diagnosis.sets.third.models import FURTHER
from benchmarks.diagnosis.sets.third.training import FURTHER_TRAINED, FURTHER_TRAININGS
from benchmarks.diagnosis.spoilers import spoil_model
from benchmarks.diagnosis.tasks import make_task

ARCHITECTURES: dict[str, Callable[[Recipe], nn.Module]] = {
    "mlp": models.MLP,
    "cnn": models.CNN,
    "separable": models.Separable,
    "autoencoder": models.Autoencoder,
    "highway": models.Highway,
    "rezero": models.ReZero,
    "siren": models.Siren,
    "rnn": sequences.Recurrent,
    "lstm": sequences.Recurrent,
    "gru": sequences.Recurrent,
    "transformer": sequences.Transformer,
    "mixer": sequences.Mixer,
    "textcnn": sequences.TextCNN,
    "neighbors": sequences.Neighbors,
    "factors": sequences.Factors,
    "experts": special.Experts,
    "heads": special.Heads,
    "lora": special.Adapted,
    "frozen": special.Frozen,
    "gan": special.GAN,
    **UNSEEN,
    **FURTHER,
    **FURTHER_TRAINED,
    **FOURTH_ATTENTION,
    **FOURTH_DENSE,
    **FOURTH_FIELDS,
    **FOURTH_IMAGES,
    **FOURTH_SEQUENCES,
    **FIFTH_ATTENTION,
    **FIFTH_CODES,
    **FIFTH_DENSE,
    **FIFTH_SEQUENCES,
    **FIFTH_SPATIAL,
    **FIFTH_WEIGHTS,
    **SIXTH_DENSE,
    **SIXTH_IMAGES,
    **SIXTH_LINKS,
    **SIXTH_SEQUENCES,
    **SEVENTH_DENSE,
    **SEVENTH_IMAGES,
    **SEVENTH_PICTURES,
    **SEVENTH_SEQUENCES,
    **EIGHTH_DENSE,
    **EIGHTH_IMAGES,
    **EIGHTH_SEQUENCES,
    **NINTH_ATTENTION,
    **NINTH_COLUMNS,
    **NINTH_DENSE,
    **NINTH_IMAGES,
    **NINTH_RECURRENT,
}
TRAININGS = {
    **special.TRAININGS,
    **UNSEEN_TRAININGS,
    **FURTHER_TRAININGS,
    **FOURTH_TRAININGS,
    **FOURTH_GAMES,
    **FIFTH_TRAININGS,
    **SIXTH_TRAININGS,
    **SEVENTH_TRAININGS,
    **NINTH_TRAININGS,
}


def build_model(recipe: Recipe, seed: int) -> nn.Module:
    """The model with its first weights."""
    torch.manual_seed(seed)
    model = ARCHITECTURES[recipe.arch](recipe)
    initialize(model, recipe.init)
    dead = recipe.extra("dead")
    if dead is not None:
        model.blocks[int(dead or 1)].layer.bias.data.fill_(-30.0)
    zeroed = recipe.extra("zero_head")
    if zeroed is not None:
        nn.init.zeros_(model.head.weight)
    spoil_model(model, recipe)
    if recipe.precision in ("float16", "bfloat16"):
        model.to(getattr(torch, recipe.precision))
    return model


def build_task(recipe: Recipe, seed: int) -> Any:
    training = recipe.extra("training")
    return TRAININGS[training](recipe, seed) if training else make_task(recipe, seed)


def build_optimizers(recipe: Recipe, model: nn.Module) -> list[torch.optim.Optimizer]:
    """Optimizers over all trainable parameters except those that "missing:NAME" leaves out.

    "factor:NAME" gives those parameters ten times the rate, "standing:NAME" a rate of zero; "apart:NAME"
    gives them an optimizer of their own. "eps:V" is what optimizers of Adam's kind add to their denominator.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    missing, apart = recipe.extra("missing"), recipe.extra("apart")
    named = [(n, p) for n, p in named if missing is None or missing not in n]
    if recipe.optimizer == "muon":
        inner = [(n, p) for n, p in named if p.dim() == 2 and "head" not in n and "embed" not in n]
        return [
            torch.optim.Muon([p for _, p in inner], recipe.lr),
            _optimizer(recipe, [x for x in named if all(x[0] != n for n, _ in inner)], "adamw"),
        ]
    parts = [[x for x in named if (apart or "?") not in x[0]], [x for x in named if (apart or "?") in x[0]]]
    return [_optimizer(recipe, part, recipe.optimizer) for part in parts if part]


def _optimizer(recipe: Recipe, named: list[tuple[str, nn.Parameter]], kind: str) -> torch.optim.Optimizer:
    factors = {str(recipe.extra(name)): f for name, f in (("factor", 10.0), ("standing", 0.0))}
    by_factor: dict[float, list[nn.Parameter]] = {}
    for n, p in named:
        by_factor.setdefault(next((f for part, f in factors.items() if part in n), 1.0), []).append(p)
    groups = [{"params": params, "lr": recipe.lr * f, "factor": f} for f, params in by_factor.items()]
    rate, decay = recipe.lr, recipe.weight_decay
    if kind in ("sgd", "nesterov"):
        options = {"momentum": recipe.momentum, "nesterov": kind == "nesterov"}
        return torch.optim.SGD(groups, rate, weight_decay=decay, foreach=True, **options)
    floor = {"eps": float(recipe.extra("eps"))} if recipe.extra("eps") is not None else {}
    makers = {
        "rmsprop": torch.optim.RMSprop,
        "adagrad": torch.optim.Adagrad,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "nadam": torch.optim.NAdam,
        "radam": torch.optim.RAdam,
        "adamax": torch.optim.Adamax,
        "adadelta": torch.optim.Adadelta,
    }
    if kind == "lion":
        return Lion(groups, rate, decay)
    if kind == "adafactor":
        return torch.optim.Adafactor(groups, rate, weight_decay=decay)
    if kind == "rprop":
        return torch.optim.Rprop(groups, rate, foreach=True)
    if kind in FIFTH_OPTIMIZERS:
        return FIFTH_OPTIMIZERS[kind](groups, rate, decay)
    return makers[kind](groups, rate, weight_decay=decay, foreach=True, **floor)  # type: ignore[operator]


def rate_at(recipe: Recipe, step: int) -> float:
    """The factor of the learning rate at a step (counted from 0)."""
    warm = min((step + 1) / recipe.warmup, 1.0) if recipe.warmup else 1.0
    done = step / recipe.steps
    if recipe.schedule == "range":  # a range test: from 1e-6 to 10
        return float(10.0 ** (7 * done - 6))
    if recipe.schedule == "spent":  # one that ended before the run began
        return 1e-6
    if recipe.schedule == "plunging":  # a decay for each epoch that is applied at each step
        return 0.1**step
    if recipe.schedule == "growing":  # an exponential schedule whose base is above one by mistake
        return 1.15**step
    if recipe.schedule == "cosine":
        return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
    if recipe.schedule == "restarts":
        return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (3 * done % 1))))
    if recipe.schedule == "steps":
        return warm * 0.3 ** int(3 * done)
    if recipe.schedule == "linear":
        return warm * (1 - 0.95 * done)
    if recipe.schedule == "one_cycle":  # up for a third, then down to a hundredth
        return (
            max(3 * done, 0.04)
            if done < 1 / 3
            else 0.01 + 0.99 * math.cos(0.75 * math.pi * (done - 1 / 3)) ** 2
        )
    if recipe.schedule == "triangles":
        return warm * (0.1 + 0.9 * abs((4 * done) % 2 - 1))
    if recipe.schedule == "inverse_sqrt":
        return warm * min(1.0, (max(recipe.warmup, 10) / (step + 1)) ** 0.5)
    return warm
