"""Models of vectors and tables of the seventh set only."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from benchmarks.diagnosis.models import ACTIVATIONS, MLP
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.sixth.dense import Stack
from benchmarks.diagnosis.tasks import SIZES

__all__ = ["SEVENTH_DENSE"]


class Coder(nn.Module):
    """An encoder and a decoder, for losses that need the code."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, width = SIZES[recipe.task][0], recipe.width
        self.encode = nn.Sequential(
            nn.Linear(inputs, width), ACTIVATIONS[recipe.activation](), nn.Linear(width, width // 3)
        )
        self.decode = nn.Sequential(
            nn.Linear(width // 3, width), ACTIVATIONS[recipe.activation](), nn.Linear(width, inputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class TopCode(Coder):
    """Only the largest eight elements of the code are kept."""

    def forward(self, x: Tensor) -> Tensor:
        code = F.relu(self.encode(x))
        best = code.topk(8, 1)
        return self.decode(torch.zeros_like(code).scatter(1, best.indices, best.values))


class TwoCodes(nn.Module):
    """A variational autoencoder with a code of the code (Sønderby et al. 2016)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, width = SIZES[recipe.task][0], recipe.width
        self.first = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, 16))
        self.second = nn.Sequential(nn.Linear(8, width), nn.SiLU(), nn.Linear(width, 8))
        self.prior = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, 16))
        self.decode = nn.Sequential(nn.Linear(8, width), nn.SiLU(), nn.Linear(width, inputs))


class DeepKernel(nn.Module):
    """Features, and the noise and the length of a Gaussian process on them (Wilson et al. 2016)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.features = MLP(recipe)
        self.log_noise = nn.Parameter(torch.tensor(-1.0))
        self.log_length = nn.Parameter(torch.tensor(0.0))


class CirculantLinear(nn.Module):
    """Signs that are not trained, and a matrix whose rows are one row, shifted."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.randn(width) * math.sqrt(2 / width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("signs", torch.randint(0, 2, (width,)) * 2.0 - 1)
        at = torch.arange(width)
        self.register_buffer("shift", (at[None] - at[:, None]) % width)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x * self.signs, self.row[self.shift], self.bias)


class Circulant(Stack):
    def one(self, recipe: Recipe) -> nn.Module:
        return CirculantLinear(recipe.width)


class OrthogonalLayers(Stack):
    """Matrices that stay orthogonal, by their parametrization."""

    def one(self, recipe: Recipe) -> nn.Module:
        return parametrizations.orthogonal(nn.Linear(recipe.width, recipe.width))


class SpectralLayers(Stack):
    """Matrices divided by their largest singular value."""

    def one(self, recipe: Recipe) -> nn.Module:
        return parametrizations.spectral_norm(nn.Linear(recipe.width, recipe.width))


class GatedResiduals(Stack):
    """Gated branches around which the input is added and normalized (Lim et al. 2021)."""

    def one(self, recipe: Recipe) -> nn.Module:
        width = recipe.width
        return nn.Sequential(nn.Linear(width, width), nn.ELU(), nn.Linear(width, 2 * width), nn.GLU(1))

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.norms = nn.ModuleList(nn.LayerNorm(recipe.width) for _ in range(recipe.depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer, norm in zip(self.layers, self.norms):
            x = norm(x + layer(x))
        return self.head(x)


class Wavelets(nn.Module):
    """One layer of wavelets with places and widths of their own."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.stem = nn.Linear(inputs, recipe.width)
        self.shift = nn.Parameter(torch.randn(recipe.width))
        self.stretch = nn.Parameter(torch.ones(recipe.width))
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        t = self.stretch * (self.stem(x) - self.shift)
        return self.head((1 - t.square()) * torch.exp(-0.5 * t.square()))


class ObliviousTrees(nn.Module):
    """Trees whose levels share one soft question each (Popov et al. 2020)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        trees, depth = recipe.width, recipe.depth
        self.choices = nn.Parameter(0.3 * torch.randn(trees, depth, inputs))
        self.thresholds = nn.Parameter(0.3 * torch.randn(trees, depth))
        self.leaves = nn.Parameter(0.3 * torch.randn(trees, 2**depth, outputs))

    def forward(self, x: Tensor) -> Tensor:
        asked = torch.einsum("bi,tdi->btd", x, self.choices.softmax(2)) - self.thresholds
        yes = torch.sigmoid(3 * asked)
        share = x.new_ones(len(x), len(self.choices), 1)
        for level in yes.unbind(2):
            share = torch.cat([share * level[..., None], share * (1 - level[..., None])], 2)
        return torch.einsum("btl,tlo->bo", share, self.leaves) / math.sqrt(len(self.choices))


class TrendSeason(nn.Module):
    """A linear model of a series' running mean and one of the rest (DLinear)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.trend, self.season = nn.Linear(30, 1), nn.Linear(30, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.squeeze(2)
        slow = F.avg_pool1d(x[:, None], 5, 1, 2, count_include_pad=False)[:, 0]
        return self.trend(slow) + self.season(x - slow)


class BasisBlocks(nn.Module):
    """Each block explains a part of a series, subtracts it, and adds to the forecast (N-BEATS)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.parts = nn.ModuleList(
            nn.Sequential(nn.Linear(30, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
            for _ in range(recipe.depth)
        )
        self.back = nn.ModuleList(nn.Linear(width, 30) for _ in range(recipe.depth - 1))
        self.ahead = nn.ModuleList(nn.Linear(width, 1) for _ in range(recipe.depth))

    def forward(self, x: Tensor) -> Tensor:
        x, total = x.squeeze(2), torch.zeros(())
        for i, (part, ahead) in enumerate(zip(self.parts, self.ahead)):
            h = part(x)
            total = total + ahead(h)
            x = x - self.back[i](h) if i < len(self.back) else x
        return total


class ActorAndCritic(nn.Module):
    """Two networks with tanh: an action for a state, and the worth of both."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.actor = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))
        self.critic = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))


SEVENTH_DENSE: dict[str, type[nn.Module]] = {
    "coder": Coder,
    "top_code": TopCode,
    "two_codes": TwoCodes,
    "deep_kernel": DeepKernel,
    "circulant": Circulant,
    "orthogonal_layers": OrthogonalLayers,
    "spectral_layers": SpectralLayers,
    "gated_residuals": GatedResiduals,
    "wavelets": Wavelets,
    "oblivious_trees": ObliviousTrees,
    "trend_season": TrendSeason,
    "basis_blocks": BasisBlocks,
    "actor_and_critic": ActorAndCritic,
}
