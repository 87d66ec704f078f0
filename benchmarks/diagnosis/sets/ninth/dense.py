"""Models of vectors of the ninth set only: what their layers and units are."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.models import ACTIVATIONS
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.eighth.dense import Stacked
from benchmarks.diagnosis.tasks import SIZES

__all__ = ["NINTH_DENSE"]


class FuzzyRules(nn.Module):
    """Linear models, each of which holds near a center of its own (ANFIS; Jang 1993)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.centers = nn.Parameter(torch.randn(recipe.width, inputs))
        self.widths = nn.Parameter(torch.zeros(recipe.width, inputs))
        self.then = nn.Linear(inputs, recipe.width * outputs)

    def forward(self, x: Tensor) -> Tensor:
        away = (x[:, None] - self.centers) / self.widths.exp()
        holds = (-away.square().sum(2) / 2).softmax(1)
        return (holds[..., None] * self.then(x).unflatten(1, (len(self.centers), -1))).sum(1)


class Dendrites(nn.Module):
    """Units with three branches each, whose outputs are weighed and summed."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.branches = nn.Linear(width, 3 * width)
        self.weigh = nn.Parameter(torch.randn(3, width) / 3**0.5)
        self.bias = nn.Parameter(torch.zeros(width))
        self.activation = ACTIVATIONS[recipe.activation]()

    def forward(self, x: Tensor) -> Tensor:
        grown = self.activation(self.branches(x).unflatten(1, (3, -1)))
        return (grown * self.weigh).sum(1) + self.bias


class Dendritic(Stacked):
    def one(self, recipe: Recipe) -> nn.Module:
        return Dendrites(recipe)


class Lattices(nn.Module):
    """Multilinear interpolation between the learned corners of cubes (deep lattice networks)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.place = nn.Linear(inputs, 3 * recipe.width)
        self.corners = nn.Parameter(torch.randn(recipe.width, 2, 2, 2))
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        at = torch.sigmoid(self.place(x)).unflatten(1, (-1, 3))
        a, b, c = torch.stack([1 - at, at], 3).unbind(2)
        return self.head(torch.einsum("bli,blj,blk,lijk->bl", a, b, c, self.corners))


class Periodic(Stacked):
    """Sines of each feature with learned frequencies, a layer for each, and a network (Gorishniy et al.)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        inputs = SIZES[recipe.task][0]
        self.rates = nn.Parameter(0.3 * torch.randn(inputs, 6))
        self.stem = nn.Linear(12 * inputs, recipe.width)

    def one(self, recipe: Recipe) -> nn.Module:
        return nn.Sequential(nn.ReLU(), nn.Linear(recipe.width, recipe.width))

    def forward(self, x: Tensor) -> Tensor:
        angle = 2 * math.pi * x[..., None] * self.rates
        return super().forward(torch.cat([angle.sin(), angle.cos()], 2).flatten(1))


class Members(nn.Module):
    """A matrix that four members share, scaled by vectors of their own (Wen et al. 2020)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.shared = nn.Linear(inputs, outputs, bias=False)
        self.before = nn.Parameter(1 + 0.3 * torch.randn(4, 1, inputs))
        self.after = nn.Parameter(1 + 0.3 * torch.randn(4, 1, outputs))
        self.bias = nn.Parameter(torch.zeros(4, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.after * self.shared(self.before * x) + self.bias


class RankOneEnsemble(nn.Module):
    """Four networks that differ by vectors alone, and their mean (BatchEnsemble, TabM)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        widths = [inputs] + [recipe.width] * recipe.depth
        self.layers = nn.ModuleList(Members(a, b) for a, b in pairwise(widths))
        self.activation = ACTIVATIONS[recipe.activation]()
        self.head = Members(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.activation(layer(x))
        return self.head(x).mean(0)


class MultiGate(nn.Module):
    """Four shared experts; each of two tasks, halves of the outputs, weighs them itself (Ma et al. 2018)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(4)
        )
        self.gates = nn.ModuleList(nn.Linear(inputs, 4) for _ in range(2))
        self.towers = nn.ModuleList(
            nn.Sequential(nn.GELU(), nn.Linear(width, n)) for n in (outputs // 2, outputs - outputs // 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        known = torch.stack([expert(x) for expert in self.experts], 1)
        gates = [gate(x).softmax(1)[..., None] for gate in self.gates]
        return torch.cat([tower((gate * known).sum(1)) for gate, tower in zip(gates, self.towers)], 1)


class UnitLayer(nn.Module):
    """Cosines of the input and the weights in place of products (Luo et al. 2017), with a learned gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) / width**0.5)
        self.gain, self.bias = nn.Parameter(torch.full((width,), 4.0)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1)) + self.bias


class UnitLayers(Stacked):
    def one(self, recipe: Recipe) -> nn.Module:
        return nn.Sequential(UnitLayer(recipe.width), ACTIVATIONS[recipe.activation]())


class Rational(nn.Module):
    """A layer, and a learned ratio of two polynomials as its activation (Molina et al. 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)
        self.above = nn.Parameter(torch.tensor([0.03, 0.5, 0.4, 0.03]))
        self.below = nn.Parameter(torch.tensor([0.1, 0.2]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        a, b = self.above, self.below.abs()
        top = a[0] + x * (a[1] + x * (a[2] + x * a[3]))
        return top / (1 + b[0] * x.abs() + b[1] * x.square())


class Rationals(Stacked):
    def one(self, recipe: Recipe) -> nn.Module:
        return Rational(recipe.width)


class Blend(nn.Module):
    """A layer, and a learned mixture of four activations for each unit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)
        self.choice = nn.Parameter(0.1 * torch.randn(width, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        forms = torch.stack([x, F.relu(x), torch.tanh(x), torch.sin(x)], -1)
        return (self.choice.softmax(1) * forms).sum(-1)


class Blended(Stacked):
    def one(self, recipe: Recipe) -> nn.Module:
        return Blend(recipe.width)


class Kronecker(nn.Module):
    """A layer whose matrix is the Kronecker product of two small ones, around which the input is added."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.left = nn.Parameter(torch.randn(4, 4) / 2)
        self.right = nn.Parameter(torch.randn(width // 4, width // 4) / (width // 4) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(width))
        self.activation = ACTIVATIONS[recipe.activation]()

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.left @ x.unflatten(1, (4, -1)) @ self.right
        return x + self.activation(mixed.flatten(1) + self.bias)


class Kroneckers(Stacked):
    def one(self, recipe: Recipe) -> nn.Module:
        return Kronecker(recipe)


class HyperConnections(Stacked):
    """Three streams that are mixed in front of each layer and get its result back (Zhu et al. 2024)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.read = nn.Parameter(torch.ones(recipe.depth, 3) / 3 + 0.1 * torch.randn(recipe.depth, 3))
        self.write = nn.Parameter(torch.ones(recipe.depth, 3) + 0.1 * torch.randn(recipe.depth, 3))
        self.keep = nn.Parameter(torch.eye(3).repeat(recipe.depth, 1, 1))

    def one(self, recipe: Recipe) -> nn.Module:
        width = recipe.width
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), ACTIVATIONS[recipe.activation]())

    def forward(self, x: Tensor) -> Tensor:
        streams = self.stem(x)[:, None].expand(-1, 3, -1)
        for i, layer in enumerate(self.layers):
            new = layer((self.read[i, :, None] * streams).sum(1))
            streams = self.keep[i] @ streams + self.write[i, :, None] * new[:, None]
        return self.head(streams.sum(1))


class BetweenRows(Stacked):
    """The members of a batch attend to each other between layers (Kossen et al. 2021)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.look = nn.ModuleList(nn.Linear(recipe.width, 3 * recipe.width) for _ in self.layers)

    def one(self, recipe: Recipe) -> nn.Module:
        width = recipe.width
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer, look in zip(self.layers, self.look):
            q, k, v = look(x).chunk(3, 1)
            x = x + (q @ k.T / q.shape[1] ** 0.5).softmax(1) @ v
            x = x + layer(x)
        return self.head(x)


NINTH_DENSE: dict[str, type[nn.Module]] = {
    "fuzzy_rules": FuzzyRules,
    "dendrites": Dendritic,
    "lattices": Lattices,
    "periodic": Periodic,
    "rank_one_ensemble": RankOneEnsemble,
    "multi_gate": MultiGate,
    "unit_layers": UnitLayers,
    "rationals": Rationals,
    "blended": Blended,
    "kronecker": Kroneckers,
    "hyper_connections": HyperConnections,
    "between_rows": BetweenRows,
}
