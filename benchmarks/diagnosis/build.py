"""From a recipe to its model, its task and its optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.diagnosis import models, sequences, special
from benchmarks.diagnosis.initialize import initialize
from benchmarks.diagnosis.recipe import Recipe
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
    if recipe.precision in ("float16", "bfloat16"):
        model.to(getattr(torch, recipe.precision))
    return model


def build_task(recipe: Recipe, seed: int) -> Any:
    training = recipe.extra("training")
    return special.TRAININGS[training](recipe, seed) if training else make_task(recipe, seed)


def build_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Over all trainable parameters but those that "missing:NAME" leaves out."""
    missing = recipe.extra("missing")
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    params = [p for n, p in named if missing is None or missing not in n]
    rate, decay = recipe.lr, recipe.weight_decay
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(params, rate, momentum=recipe.momentum, weight_decay=decay, foreach=True)
    if recipe.optimizer == "rmsprop":
        return torch.optim.RMSprop(params, rate, weight_decay=decay, foreach=True)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    return kind(params, rate, weight_decay=decay, foreach=True)


def rate_at(recipe: Recipe, step: int) -> float:
    """What the learning rate is multiplied by at a step (from 0)."""
    warm = min((step + 1) / recipe.warmup, 1.0) if recipe.warmup else 1.0
    done = step / recipe.steps
    if recipe.schedule == "cosine":
        return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
    if recipe.schedule == "restarts":
        return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (3 * done % 1))))
    if recipe.schedule == "steps":
        return warm * 0.3 ** int(3 * done)
    if recipe.schedule == "inverse_sqrt":
        return warm * min(1.0, (max(recipe.warmup, 10) / (step + 1)) ** 0.5)
    return warm
