"""Models of vectors of the eighth set only."""

from __future__ import annotations

from abc import abstractmethod
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.models import ACTIVATIONS, Block
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.tasks import SIZES

__all__ = ["EIGHTH_DENSE"]


class Stacked(nn.Module):
    """A stem, layers that `one` makes, and a head."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.stem = nn.Linear(inputs, recipe.width)
        self.layers = nn.ModuleList(self.one(recipe) for _ in range(recipe.depth))
        self.head = nn.Linear(recipe.width, outputs)

    @abstractmethod
    def one(self, recipe: Recipe) -> nn.Module:
        """A layer."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class LowRank(nn.Module):
    """`Block`s whose matrix is the product of two narrow ones."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        widths = [inputs] + [recipe.width] * (recipe.depth - 1)
        rank = recipe.width // 4
        self.blocks = nn.ModuleList(
            Block(recipe, nn.Sequential(nn.Linear(a, rank, bias=False), nn.Linear(rank, b)), b, False)
            for a, b in pairwise(widths)
        )
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Snake(nn.Module):
    """x + sin²(ax) / a with a learned frequency of each unit (Ziyin et al. 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)
        self.rate = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return x + torch.sin(self.rate * x).square() / (self.rate.abs() + 0.1)


class Snakes(Stacked):
    def one(self, recipe: Recipe) -> nn.Module:
        return Snake(recipe.width)


class Scaled(nn.Module):
    """A residual branch that starts small (layer scale), around a wide hidden layer."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.activation = ACTIVATIONS[recipe.activation]()
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.down(self.activation(self.up(self.norm(x))))


class LayerScale(Stacked):
    def one(self, recipe: Recipe) -> nn.Module:
        return Scaled(recipe)


class Repeated(Stacked):
    """One layer that is used `depth` times, with a norm and a skip."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.layers = self.layers[:1]
        self.norm = nn.LayerNorm(recipe.width)
        self.activation = ACTIVATIONS[recipe.activation]()
        self.times = recipe.depth

    def one(self, recipe: Recipe) -> nn.Module:
        return nn.Linear(recipe.width, recipe.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(self.times):
            x = x + self.activation(self.layers[0](self.norm(x)))
        return self.head(x)


class TwoExperts(Stacked):
    """Each input goes to the two best of four experts, weighted by the router (Shazeer et al. 2017)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.router = nn.Linear(recipe.width, len(self.layers))

    def one(self, recipe: Recipe) -> nn.Module:
        wide = 2 * recipe.width
        return nn.Sequential(nn.Linear(recipe.width, wide), nn.GELU(), nn.Linear(wide, recipe.width))

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.stem(x))
        value, best = self.router(x).topk(2, 1)
        weight = torch.zeros(len(x), len(self.layers)).scatter(1, best, value.softmax(1))
        mixed = torch.stack([layer(x) for layer in self.layers], 1)
        return self.head(x + (weight[..., None] * mixed).sum(1))


class Skipping(Stacked):
    """Half of a batch, chosen by a learned score, goes through each layer (mixture of depths)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.scores = nn.ModuleList(nn.Linear(recipe.width, 1) for _ in self.layers)

    def one(self, recipe: Recipe) -> nn.Module:
        return nn.Sequential(nn.LayerNorm(recipe.width), nn.Linear(recipe.width, recipe.width), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer, score in zip(self.layers, self.scores):
            gate = score(x).squeeze(1)
            chosen = gate.topk(max(len(x) // 2, 1)).indices
            x = x.index_add(0, chosen, torch.sigmoid(gate[chosen, None]) * layer(x[chosen]))
        return self.head(x)


class Cosine(Stacked):
    """Logits are cosines of features and class vectors, times a learned scale."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.scale = nn.Parameter(torch.tensor(8.0))

    def one(self, recipe: Recipe) -> nn.Module:
        return nn.Sequential(ACTIVATIONS[recipe.activation](), nn.Linear(recipe.width, recipe.width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.scale * F.normalize(x, dim=1) @ F.normalize(self.head.weight, dim=1).T + self.head.bias


class Bilinear(Stacked):
    """Two views of the input are multiplied, feature by feature, after each layer (low-rank bilinear)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.views = nn.ModuleList(nn.Linear(SIZES[recipe.task][0], recipe.width) for _ in self.layers)

    def one(self, recipe: Recipe) -> nn.Module:
        return nn.Linear(recipe.width, recipe.width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for layer, view in zip(self.layers, self.views):
            h = h + torch.tanh(layer(h)) * view(x)
        return self.head(h)


class Piecewise(Stacked):
    """Each feature as its place among learned knots (Gorishniy et al. 2022), and a network on them."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        inputs = SIZES[recipe.task][0]
        self.knots = nn.Parameter(torch.linspace(-1.5, 1.5, 6).repeat(inputs, 1))
        self.stem = nn.Linear(6 * inputs, recipe.width)

    def one(self, recipe: Recipe) -> nn.Module:
        return nn.Sequential(nn.ReLU(), nn.Linear(recipe.width, recipe.width))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.tanh(2 * (x[..., None] - self.knots)).flatten(1))


class Dueling(Stacked):
    """What a state is worth, and what each choice adds to it (Wang et al. 2016)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.value = nn.Linear(recipe.width, 1)

    def one(self, recipe: Recipe) -> nn.Module:
        return nn.Sequential(nn.ReLU(), nn.Linear(recipe.width, recipe.width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        more = self.head(F.relu(x))
        return self.value(F.relu(x)) + more - more.mean(1, keepdim=True)


class Products(Stacked):
    """Sums of products of powers, by logarithms of softplus features."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.powers = nn.Linear(recipe.width, recipe.width)

    def one(self, recipe: Recipe) -> nn.Module:
        return nn.Sequential(nn.GELU(), nn.Linear(recipe.width, recipe.width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(torch.exp(torch.tanh(self.powers((F.softplus(x) + 0.1).log()))))


EIGHTH_DENSE: dict[str, type[nn.Module]] = {
    "low_rank": LowRank,
    "snakes": Snakes,
    "layer_scale": LayerScale,
    "repeated": Repeated,
    "two_experts": TwoExperts,
    "skipping": Skipping,
    "cosine_head": Cosine,
    "bilinear": Bilinear,
    "piecewise": Piecewise,
    "dueling": Dueling,
    "powers": Products,
}
