"""Models of pairs and of pictures of the seventh set only."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.tasks import SIZES

__all__ = ["SEVENTH_PICTURES"]


class Statements(nn.Module):
    """The product of a subject, a relation and an object, feature by feature (Yang et al. 2015)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.things, self.relations = nn.Embedding(40, recipe.width), nn.Embedding(5, recipe.width)
        self.bias = nn.Parameter(torch.zeros(1))
        for table in (self.things, self.relations):
            nn.init.normal_(table.weight, 0.0, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        subject, object_ = self.things(x[:, 0]), self.things(x[:, 2])
        return (subject * self.relations(x[:, 1]) * object_).sum(1, keepdim=True) + self.bias


class WordVectors(nn.Module):
    """The logarithm of a count as the product of two vectors and two biases (GloVe)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.left, self.right = nn.Embedding(64, recipe.width), nn.Embedding(64, recipe.width)
        self.left_bias, self.right_bias = nn.Embedding(64, 1), nn.Embedding(64, 1)
        for table in (self.left, self.right):
            nn.init.uniform_(table.weight, -0.3, 0.3)
        for table in (self.left_bias, self.right_bias):
            nn.init.zeros_(table.weight)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.unbind(1)
        return (self.left(a) * self.right(b)).sum(1, keepdim=True) + self.left_bias(a) + self.right_bias(b)


class Hyperbolic(nn.Module):
    """The distance of two points of a ball whose rim is infinitely far away (Nickel and Kiela 2017)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.points = nn.Embedding(64, recipe.width)
        self.scale = nn.Parameter(torch.ones(1))
        nn.init.normal_(self.points.weight, 0.0, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.points(x)
        inside = 0.95 * inside / (1 + inside.square().sum(2, keepdim=True)).sqrt()
        a, b = inside.unbind(1)
        room = (1 - a.square().sum(1)) * (1 - b.square().sum(1))
        ratio = 1 + 2 * (a - b).square().sum(1) / room
        return (self.scale * torch.acosh(ratio + 1e-5))[:, None]


class Rays(nn.Module):
    """The color along a ray, from density and color at sixteen points of it (Mildenhall et al. 2020)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.register_buffer("waves", math.pi * 2.0 ** torch.arange(3.0))
        self.stem = nn.Linear(12, recipe.width)
        self.layers = nn.ModuleList(nn.Linear(recipe.width, recipe.width) for _ in range(recipe.depth))
        self.head = nn.Linear(recipe.width, 4)

    def forward(self, x: Tensor) -> Tensor:
        start, along = x[:, None, :2], x[:, None, 2:]
        points = start + torch.linspace(0, 3, 16)[None, :, None] * along
        waves = (points[..., None] * self.waves).flatten(2)
        h = F.relu(self.stem(torch.cat([waves.sin(), waves.cos()], 2)))
        for layer in self.layers:
            h = F.relu(layer(h))
        density, color = self.head(h).split([1, 3], 2)
        seen = 1 - torch.exp(-F.softplus(density) * 3 / 16)
        left = torch.cumprod(torch.cat([torch.ones_like(seen[:, :1]), 1 - seen[:, :-1]], 1), 1)
        return (left * seen * color.sigmoid()).sum(1)


class Splats(nn.Module):
    """A picture of Gaussian spots, each with a place, a size, a color and a weight."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        count = recipe.width
        self.places = nn.Parameter(2 * torch.rand(count, 2) - 1)
        self.sizes = nn.Parameter(torch.full((count, 2), math.log(4.0)))
        self.colors = nn.Parameter(0.2 * torch.randn(count, SIZES[recipe.task][1]))

    def forward(self, x: Tensor) -> Tensor:
        apart = (x[:, None] - self.places) * self.sizes.exp()
        return torch.exp(-0.5 * apart.square().sum(2)) @ self.colors


class Grids(nn.Module):
    """Features from grids of several sizes, interpolated, and a small network (Müller et al. 2022)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.grids = nn.ParameterList(0.1 * torch.randn(1, 4, n, n) for n in (4, 8, 16))
        self.stem = nn.Linear(12, recipe.width)
        self.head = nn.Linear(recipe.width, SIZES[recipe.task][1])

    def forward(self, x: Tensor) -> Tensor:
        at = x.view(1, -1, 1, 2)
        found = [F.grid_sample(grid, at, align_corners=True)[0, :, :, 0].T for grid in self.grids]
        return self.head(F.relu(self.stem(torch.cat(found, 1))))


SEVENTH_PICTURES: dict[str, type[nn.Module]] = {
    "statements": Statements,
    "word_vectors": WordVectors,
    "hyperbolic": Hyperbolic,
    "rays": Rays,
    "splats": Splats,
    "grids": Grids,
}
