"""Faults of the fifth set and of later ones that act in a model, a batch or a loss, as extras of a recipe.

cut:MODULE         the output of a module is detached
blocked:MODULE     the output of a module is rounded, without a straight-through gradient
signed:MODULE      only the sign of the output of a module is used
spare              a layer that is never used
shrunk:F           the output of each block's activation is multiplied by F
loud:NAME=F        a parameter's first values are multiplied by F
fill:NAME=V        all first values of a parameter are V
negative:K         block K starts with weights below zero
stuck:K            block K starts with biases of 12 and -12
surge:K            the loss of step K is multiplied by 3000
raw_batch:K        the inputs of step K are in pixels of 255
far_input:K        the first input of step K is multiplied by 10,000
nan_target:K       the first target of step K is NaN
log_zero:K         a logarithm of zero is added to the loss of step K
root_zero:K        the root of a square of zero is added to the loss of step K
nan_feature        the first feature of all inputs is NaN (0 / 0, from a standardization)
columns:F          features of the inputs are multiplied by factors from 1 to F
blank              all inputs are zero
hard:MODULE        only which element of the output of a module is largest is used
holes:S            a share S of the elements of the inputs is NaN (missing values that nobody filled in)
flat:K             the inputs of step K are divided by their spread, which is zero
exp_loss:K         the exponential of a large multiple of the loss is added to the loss of step K
logged             the targets are logarithms, though some are negative
static:K           the inputs of step K are noise of 16-bit integers (a file that was read wrong)
sentinel:K         the first target of step K is -9999, which stands for a missing one
sentinels:S        a share S of the elements of the inputs is -999
noise_inputs       inputs are noise
rolled             each input has the label or the target of the next one of its batch
one_class          a batch has only one class (data that nobody has shuffled)
late_labels        labels are those of the previous batch
alternating        labels or targets are turned around at every other step
praise:F           F times the squares of all weights are subtracted from the loss
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.diagnosis.models import Block
from benchmarks.diagnosis.recipe import Recipe

__all__ = ["Spoiler", "spoil_loss", "spoil_model"]


def spoil_model(model: nn.Module, recipe: Recipe) -> None:
    """Faults of the forward pass and of the first weights."""
    changes = (
        ("cut", torch.Tensor.detach),
        ("blocked", torch.round),
        ("signed", torch.sign),
        ("hard", _hard),
    )
    for extra, change in changes:
        name = recipe.extra(extra)
        if name is not None:
            model.get_submodule(name).register_forward_hook(lambda m, i, out, change=change: change(out))
    if recipe.extra("spare") is not None:
        model.spare = nn.Linear(recipe.width, recipe.width)
    factor = recipe.extra("shrunk")
    if factor is not None:
        for block in (m for m in model.modules() if isinstance(m, Block)):
            block.activation.register_forward_hook(lambda m, i, out: out * float(factor))
    loud = recipe.extra("loud")
    if loud is not None:
        name, _, times = loud.partition("=")
        model.get_parameter(name).data.mul_(float(times))
    fill = recipe.extra("fill")
    if fill is not None:
        name, _, value = fill.partition("=")
        model.get_parameter(name).data.fill_(float(value))
    coarse = recipe.extra("coarse")
    if coarse is not None:
        for table in (m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))):
            table.weight.data.mul_(float(coarse))
    _spoil_block(model, recipe)


def _hard(x: Tensor) -> Tensor:
    return nn.functional.one_hot(x.argmax(-1), x.shape[-1]).to(x.dtype)


def _spoil_block(model: nn.Module, recipe: Recipe) -> None:
    negative, stuck = recipe.extra("negative"), recipe.extra("stuck")
    if negative is not None:
        layer = model.get_submodule(f"blocks.{negative}.layer")
        layer.weight.data.abs_().neg_()
        layer.bias.data.fill_(-0.1)
    if stuck is not None:
        bias = model.get_submodule(f"blocks.{stuck}.layer").bias.data
        bias.copy_(torch.where(torch.arange(len(bias)) % 2 == 0, 12.0, -12.0))


def spoil_loss(loss: Tensor, model: nn.Module, recipe: Recipe, step: int) -> Tensor:
    """The loss of a step, counted from 1."""
    if recipe.extra("surge") == str(step):
        loss = loss * 3000
    if recipe.extra("log_zero") == str(step):
        loss = loss + (loss - loss.detach()).abs().log()
    if recipe.extra("root_zero") == str(step):
        loss = loss + (loss - loss.detach()).square().sqrt()
    if recipe.extra("exp_loss") == str(step):
        loss = loss + (1000 * loss).exp()
    praise = recipe.extra("praise")
    if praise is not None:
        squares = [p.square().sum() for p in model.parameters() if p.dim() > 1]
        loss = loss - float(praise) * torch.stack(squares).sum()
    return loss


class Spoiler:
    """Faults of batches; it remembers the labels of the previous one."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._last: Tensor | None = None

    def __call__(self, x: Tensor, y: Tensor, step: int) -> tuple[Any, Any]:
        recipe, now = self._recipe, y
        x, y = self._of_batch(x, y, step)
        if recipe.extra("far_input") == str(step):
            x = torch.cat([x[:1] * 1e4, x[1:]])
        if recipe.extra("nan_target") == str(step):
            y = y.clone().index_fill_(0, torch.tensor([0]), math.nan)
        if recipe.extra("blank") is not None:
            x = torch.zeros_like(x)
        if recipe.extra("noise_inputs") is not None:
            x = torch.randn_like(x)
        if recipe.extra("late_labels") is not None:
            y = self._last if self._last is not None else y.roll(1, 0)
        if recipe.extra("alternating") is not None and step % 2 == 0:
            y = -y if y.is_floating_point() else int(y.max()) - y
        self._last = now
        return x, y

    def _of_batch(self, x: Tensor, y: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Faults of a whole batch."""
        recipe = self._recipe
        if recipe.extra("raw_batch") == str(step):
            x = x * 255
        x, y = self._of_values(x, y, step)
        if recipe.extra("nan_feature") is not None:
            x = torch.cat([torch.full_like(x[..., :1], math.nan), x[..., 1:]], -1)
        if recipe.extra("columns") is not None:
            x = x * torch.logspace(0, math.log10(float(recipe.extra("columns") or 1)), x.shape[-1])
        if recipe.extra("rolled") is not None:
            y = y.roll(1, 0)
        if recipe.extra("one_class") is not None:
            chosen = (y == step % (int(y.max()) + 1)).nonzero().squeeze(1)
            x, y = (x[chosen], y[chosen]) if len(chosen) else (x, y)
        return x, y

    def _of_values(self, x: Tensor, y: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Values that are missing, that stand for missing ones, or that were computed or read wrong."""
        recipe = self._recipe
        for extra, value in (("holes", math.nan), ("sentinels", -999.0)):
            if recipe.extra(extra) is not None:
                x = x.masked_fill(torch.rand(x.shape) < float(recipe.extra(extra) or 0.01), value)
        if recipe.extra("flat") == str(step):
            x = (x - x) / (x - x).std()
        if recipe.extra("static") == str(step):
            x = torch.randint_like(x, -32768, 32768)
        if recipe.extra("logged") is not None:
            y = y.log()
        if recipe.extra("sentinel") == str(step):
            y = torch.cat([torch.full_like(y[:1], -9999.0), y[1:]])
        return x, y
