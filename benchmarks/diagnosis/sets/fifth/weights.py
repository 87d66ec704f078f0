"""Networks of vectors of the fifth set whose matrices are rounded, structured, noisy or bypassed."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.models import ACTIVATIONS, MLP
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.tasks import SIZES


class Aligned(torch.autograd.Function):
    """A layer that propagates gradients back through a fixed random matrix (feedback alignment)."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, back: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, back)
        return x @ weight.T

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[no-untyped-def]
        x, back = ctx.saved_tensors
        return grad @ back, grad.T @ x, None


class FeedbackAlignment(nn.Module):
    """An MLP of `Aligned` layers (Lillicrap et al. 2016)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        widths = [inputs] + [recipe.width] * (recipe.depth - 1) + [outputs]
        self.weights = nn.ParameterList(torch.randn(b, a) / math.sqrt(a) for a, b in pairwise(widths))
        self.biases = nn.ParameterList(torch.zeros(b) for b in widths[1:])
        self.back = [torch.randn(b, a) / math.sqrt(a) for a, b in pairwise(widths)]
        self.activation = ACTIVATIONS[recipe.activation]()

    def forward(self, x: Tensor) -> Tensor:
        for i, (weight, bias, back) in enumerate(zip(self.weights, self.biases, self.back)):
            x = Aligned.apply(x, weight, back) + bias
            x = self.activation(x) if i < len(self.weights) - 1 else x
        return x


class LearnedSteps(MLP):
    """An MLP whose matrices are rounded to 15 levels of a learned size (LSQ)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.sizes = nn.ParameterList(2 * b.layer.weight.detach().abs().mean() / 7**0.5 for b in self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block, size in zip(self.blocks, self.sizes):
            level = (block.layer.weight / size).clamp(-7, 7)
            weight = (level + (level.round() - level).detach()) * size
            x = block.activation(block.norm(F.linear(x, weight, block.layer.bias)))
        return self.head(x)


class Signs(MLP):
    """An MLP whose matrices and activations are signs, with straight-through gradients (BinaryNet)."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            weight = block.layer.weight
            scale = weight.abs().mean().detach()
            binary = weight + (weight.sign() * scale - weight).detach()
            x = F.hardtanh(block.norm(F.linear(x, binary, block.layer.bias)))
            x = x + (x.sign() - x).detach()
        return self.head(x)


class Structured(nn.Module):
    """Block-diagonal matrices with shuffles between them (Monarch), and low-rank ones."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        groups, size = 4, recipe.width // 4
        self.stem = nn.Linear(inputs, recipe.width)
        self.diagonal = nn.ParameterList(
            torch.randn(groups, size, size) * math.sqrt(2 / size) for _ in range(recipe.depth)
        )
        self.thin = nn.ModuleList(nn.Linear(recipe.width, 4, bias=False) for _ in range(recipe.depth))
        self.wide = nn.ModuleList(nn.Linear(4, recipe.width) for _ in range(recipe.depth))
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for blocks, thin, wide in zip(self.diagonal, self.thin, self.wide):
            mixed = torch.einsum("bgi,gij->bgj", x.unflatten(1, (4, -1)), blocks)
            x = F.relu(mixed.transpose(1, 2).flatten(1) + wide(thin(x)))
        return self.head(x)


class Noisy(nn.Module):
    """Layers with learned noise on their weights, factorized over inputs and outputs (NoisyNet)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        widths = [inputs] + [recipe.width] * (recipe.depth - 1) + [outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.noise = nn.ParameterList(torch.full((b, a), 0.3 / math.sqrt(a)) for a, b in pairwise(widths))
        self.activation = ACTIVATIONS[recipe.activation]()

    def forward(self, x: Tensor) -> Tensor:
        for i, (layer, noise) in enumerate(zip(self.layers, self.noise)):
            drawn = torch.randn(noise.shape[0], 1) * torch.randn(1, noise.shape[1])
            x = F.linear(x, layer.weight + noise * drawn, layer.bias)
            x = self.activation(x) if i < len(self.layers) - 1 else x
        return x


FIFTH_WEIGHTS: dict[str, type[nn.Module]] = {
    "feedback_alignment": FeedbackAlignment,
    "learned_steps": LearnedSteps,
    "signs": Signs,
    "structured": Structured,
    "noisy": Noisy,
}
