"""Models of the ninth set of which most is frozen, and towers that exchange what they found."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.models import ACTIVATIONS
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.eighth.dense import Stacked
from benchmarks.diagnosis.tasks import SIZES

__all__ = ["NINTH_COLUMNS"]


class ScalesAlone(Stacked):
    """A frozen network whose units get a trained scale each, and a trained head (IA3; Liu et al. 2022)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.stem.requires_grad_(False)
        self.layers.requires_grad_(False)
        self.scales = nn.ParameterList(torch.ones(recipe.width) for _ in range(recipe.depth + 1))
        self.activation = ACTIVATIONS[recipe.activation]()

    def one(self, recipe: Recipe) -> nn.Module:
        return nn.Linear(recipe.width, recipe.width)

    def forward(self, x: Tensor) -> Tensor:
        for layer, scale in zip([self.stem, *self.layers], self.scales):
            x = scale * self.activation(layer(x))
        return self.head(x)


class Magnitude(nn.Module):
    """A frozen matrix with trained lengths of its rows, turned by a low-rank one (DoRA; Liu et al. 2024)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.base = nn.Linear(width, width)
        self.base.requires_grad_(False)
        self.length = nn.Parameter(self.base.weight.norm(dim=1))
        self.down, self.up = (
            nn.Parameter(torch.randn(4, width) / width**0.5),
            nn.Parameter(torch.zeros(width, 4)),
        )
        self.activation = ACTIVATIONS[recipe.activation]()

    def forward(self, x: Tensor) -> Tensor:
        weight = F.normalize(self.base.weight + self.up @ self.down, dim=1)
        return self.activation(F.linear(x, self.length[:, None] * weight, self.base.bias))


class Magnitudes(Stacked):
    def one(self, recipe: Recipe) -> nn.Module:
        return Magnitude(recipe)


class SharedRandom(Stacked):
    """Frozen layers that share two random matrices, scaled by trained vectors (VeRA; Kopiczko et al.)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.layers.requires_grad_(False)
        self.register_buffer("down", torch.randn(12, width) / width**0.5)
        self.register_buffer("up", torch.randn(width, 12) / 12**0.5)
        self.inner = nn.ParameterList(torch.full((12,), 0.1) for _ in self.layers)
        self.outer = nn.ParameterList(torch.zeros(width) for _ in self.layers)
        self.activation = ACTIVATIONS[recipe.activation]()

    def one(self, recipe: Recipe) -> nn.Module:
        return nn.Linear(recipe.width, recipe.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.stem(x))
        for layer, inner, outer in zip(self.layers, self.inner, self.outer):
            added = outer * F.linear(inner * F.linear(x, self.down), self.up)
            x = self.activation(layer(x) + added)
        return self.head(x)


class Progressive(Stacked):
    """A frozen column, and a new one that sees each of its layers (Rusu et al. 2016)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.before = nn.ModuleList(
            nn.Linear(n, width) for n in (SIZES[recipe.task][0], *[width] * recipe.depth)
        )
        self.before.requires_grad_(False)
        self.across = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(recipe.depth))
        self.activation = ACTIVATIONS[recipe.activation]()

    def one(self, recipe: Recipe) -> nn.Module:
        return nn.Linear(recipe.width, recipe.width)

    def forward(self, x: Tensor) -> Tensor:
        old, new = self.activation(self.before[0](x)), self.activation(self.stem(x))
        for i, layer in enumerate(self.layers):
            new = self.activation(layer(new) + self.across[i](old))
            old = self.activation(self.before[i + 1](old))
        return self.head(new)


class Stitched(Stacked):
    """Two towers whose features are mixed by a learned two by two matrix after each layer (Misra et al.)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.second = nn.Linear(SIZES[recipe.task][0], recipe.width)
        self.others = nn.ModuleList(self.one(recipe) for _ in range(recipe.depth))
        self.stitch = nn.Parameter(torch.tensor([[0.9, 0.1], [0.1, 0.9]]).repeat(recipe.depth, 1, 1))
        self.activation = ACTIVATIONS[recipe.activation]()

    def one(self, recipe: Recipe) -> nn.Module:
        return nn.Linear(recipe.width, recipe.width)

    def forward(self, x: Tensor) -> Tensor:
        pair = torch.stack([self.stem(x), self.second(x)], 1)
        for a, b, stitch in zip(self.layers, self.others, self.stitch):
            pair = stitch @ self.activation(pair)
            pair = torch.stack([a(pair[:, 0]), b(pair[:, 1])], 1)
        return self.head(self.activation(pair).mean(1))


NINTH_COLUMNS: dict[str, type[nn.Module]] = {
    "scales_alone": ScalesAlone,
    "magnitudes": Magnitudes,
    "shared_random": SharedRandom,
    "progressive": Progressive,
    "stitched": Stitched,
}
