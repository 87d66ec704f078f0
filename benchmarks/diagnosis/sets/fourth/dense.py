"""Models of vectors, tables, sets and graphs of the fourth set only."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from benchmarks.diagnosis.models import ACTIVATIONS, MLP, Block
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.fourth.data import adjacency
from benchmarks.diagnosis.tasks import SIZES


def dense_blocks(recipe: Recipe, widths: list[int]) -> nn.ModuleList:
    return nn.ModuleList(
        Block(recipe, nn.Linear(a, b), b, recipe.residual and a == b) for a, b in pairwise(widths)
    )


class GraphConv(nn.Module):
    """Graph convolutions (Kipf and Welling 2017): each layer first averages over neighbors."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        features, links = adjacency()
        self.register_buffer("features", features)
        self.register_buffer("links", links)
        self.blocks = dense_blocks(recipe, [inputs] + [recipe.width] * (recipe.depth - 1))
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, nodes: Tensor) -> Tensor:
        x = self.features
        for block in self.blocks:
            x = block(self.links @ x)
        return self.head(self.links @ x)[nodes]


class GraphAttention(nn.Module):
    """Neighbors weighed by attention (Velickovic et al. 2018)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        features, links = adjacency()
        self.register_buffer("features", features)
        self.register_buffer("apart", links == 0)
        widths = [inputs] + [recipe.width] * recipe.depth
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.attention = nn.ModuleList(nn.Linear(b, 2) for b in widths[1:])
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, nodes: Tensor) -> Tensor:
        x = self.features
        for layer, attention in zip(self.layers, self.attention):
            h = layer(x)
            source, target = attention(h).unbind(1)
            weights = F.leaky_relu(source[:, None] + target, 0.2).masked_fill(self.apart, -1e9).softmax(1)
            x = F.elu(weights @ h)
        return self.head(x)[nodes]


class Additive(nn.Module):
    """A small network for each feature, and the sum of their outputs (neural additive model)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.parts = nn.ModuleList(
            nn.Sequential(
                nn.Linear(1, recipe.width), ACTIVATIONS[recipe.activation](), nn.Linear(recipe.width, outputs)
            )
            for _ in range(inputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([part(x[:, i : i + 1]) for i, part in enumerate(self.parts)]).sum(0)


class Cross(nn.Module):
    """Products of the input with itself beside a deep network (DCN v2)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.crosses = nn.ModuleList(nn.Linear(inputs, inputs) for _ in range(2))
        self.blocks = dense_blocks(recipe, [inputs] + [recipe.width] * recipe.depth)
        self.head = nn.Linear(inputs + recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        crossed, deep = x, x
        for cross in self.crosses:
            crossed = x * cross(crossed) + crossed
        for block in self.blocks:
            deep = block(deep)
        return self.head(torch.cat([crossed, deep], 1))


class SoftTree(nn.Module):
    """Soft decision trees: each inner node sends an input both ways, weighted by a sigmoid."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.depth, self.trees = recipe.depth, recipe.width
        self.gates = nn.Linear(inputs, self.trees * self.depth)
        self.choose = nn.Sigmoid()
        self.leaves = nn.Parameter(0.3 * torch.randn(self.trees * 2**self.depth, outputs))

    def forward(self, x: Tensor) -> Tensor:
        right = self.choose(self.gates(x)).view(len(x), self.trees, self.depth)
        share = x.new_ones(len(x), self.trees, 1)
        for i in range(self.depth):
            go = right[:, :, i : i + 1]
            share = torch.cat([share * go, share * (1 - go)], 2)
        return share.flatten(1) @ self.leaves / math.sqrt(self.trees)


class Modulated(nn.Module):
    """A network whose units are scaled and shifted by another network of the same input (FiLM)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.condition = nn.Linear(inputs, 2 * recipe.width * recipe.depth)
        self.stem = nn.Linear(inputs, recipe.width)
        self.layers = nn.ModuleList(nn.Linear(recipe.width, recipe.width) for _ in range(recipe.depth))
        self.activation = ACTIVATIONS[recipe.activation]()
        self.head = nn.Linear(recipe.width, outputs)
        self.detach = recipe.extra("detach") is not None

    def forward(self, x: Tensor) -> Tensor:
        condition = self.condition(x)
        pieces = (condition.detach() if self.detach else condition).chunk(2 * len(self.layers), 1)
        x = self.stem(x)
        for layer, scale, shift in zip(self.layers, pieces[::2], pieces[1::2]):
            x = self.activation((1 + 0.3 * scale) * layer(x) + 0.3 * shift)
        return self.head(x)


class Capsules(nn.Module):
    """Capsules with three rounds of routing by agreement; the length of a class capsule is its score."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.primary = nn.Linear(inputs, recipe.width * 8)
        self.votes = nn.Parameter(0.1 * torch.randn(recipe.width, 8, outputs * 8))

    def forward(self, x: Tensor) -> Tensor:
        primary = self._squash(self.primary(x).view(len(x), -1, 8))
        votes = torch.einsum("bip,ipq->biq", primary, self.votes).unflatten(2, (-1, 8))
        logits = votes.new_zeros(votes.shape[:3])
        for _ in range(3):
            capsules = self._squash((logits.softmax(2)[..., None] * votes).sum(1))
            logits = logits + (votes * capsules[:, None]).sum(3)
        return capsules.square().sum(2).add(1e-7).sqrt()

    def _squash(self, x: Tensor) -> Tensor:
        size = x.square().sum(-1, keepdim=True)
        return x * size.add(1e-7).sqrt() / (1 + size)


class Reparametrized(MLP):
    """An MLP whose matrices have a weight norm or a spectral norm ("spectral")."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        spectral = recipe.extra("spectral") is not None
        wrap = parametrizations.spectral_norm if spectral else parametrizations.weight_norm
        for block in self.blocks:
            wrap(block.layer)


class Ensemble(nn.Module):
    """Three networks, and the mean of their outputs."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.members = nn.ModuleList(MLP(recipe) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(0)


class BayesLinear(nn.Module):
    """Weights drawn from a normal distribution at each call (Blundell et al. 2015)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.randn(outputs, inputs) / math.sqrt(inputs))
        self.scale = nn.Parameter(torch.full((outputs, inputs), -4.0))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.mean + F.softplus(self.scale) * torch.randn_like(self.mean)
        return F.linear(x, weight, self.bias)

    def divergence(self) -> Tensor:
        sigma = F.softplus(self.scale)
        return (0.5 * (self.mean.square() + sigma.square() - 1) - sigma.log()).sum()


class Bayesian(nn.Module):
    """An MLP of `BayesLinear` layers."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        widths = [inputs] + [recipe.width] * (recipe.depth - 1) + [outputs]
        self.layers = nn.ModuleList(BayesLinear(a, b) for a, b in pairwise(widths))
        self.activation = ACTIVATIONS[recipe.activation]()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


class Gated(nn.Module):
    """Residual layers of gated linear units with the norm in front."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        self.stem = nn.Linear(inputs, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(recipe.depth))
        self.layers = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(recipe.depth))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.layers):
            x = x + F.glu(layer(norm(x)))
        return self.head(x)


class TiedAutoencoder(nn.Module):
    """The decoder's matrices are the encoder's, transposed."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs = SIZES[recipe.task][0]
        self.layers = nn.ModuleList([nn.Linear(inputs, recipe.width), nn.Linear(recipe.width, 16)])
        self.back = nn.ParameterList([torch.zeros(recipe.width), torch.zeros(inputs)])
        self.activation = ACTIVATIONS[recipe.activation]()

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.layers
        code = second(self.activation(first(x)))
        h = self.activation(F.linear(code, second.weight.T, self.back[0]))
        return F.linear(h, first.weight.T, self.back[1])


FOURTH_DENSE: dict[str, type[nn.Module]] = {
    "graph_conv": GraphConv,
    "graph_attention": GraphAttention,
    "additive": Additive,
    "cross": Cross,
    "soft_tree": SoftTree,
    "modulated": Modulated,
    "capsules": Capsules,
    "reparametrized": Reparametrized,
    "ensemble": Ensemble,
    "bayesian": Bayesian,
    "gated": Gated,
    "tied_autoencoder": TiedAutoencoder,
}
