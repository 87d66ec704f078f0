"""Models of vectors of the sixth set only."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.models import ACTIVATIONS, MLP, Block
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.tasks import SIZES

__all__ = ["SIXTH_DENSE"]


class Stack(nn.Module):
    """A stem, `depth` layers of one kind and a head; `one` makes a layer."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.stem = nn.Linear(inputs, recipe.width)
        self.layers = nn.ModuleList(self.one(recipe) for _ in range(recipe.depth))
        self.activation = ACTIVATIONS[recipe.activation]()
        self.head = nn.Linear(recipe.width, outputs)

    def one(self, recipe: Recipe) -> nn.Module:
        return nn.Linear(recipe.width, recipe.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.stem(x))
        for layer in self.layers:
            x = self.activation(layer(x))
        return self.head(x)


class Funnel(nn.Module):
    """Each layer has three quarters of the units of the one before."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        widths = [inputs] + [max(int(recipe.width * 0.75**i), 4) for i in range(recipe.depth - 1)]
        self.blocks = nn.ModuleList(Block(recipe, nn.Linear(a, b), b, False) for a, b in pairwise(widths))
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class WideDeep(nn.Module):
    """A linear model beside a deep one (Cheng et al. 2016)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.wide = nn.Linear(inputs, outputs)
        self.deep = MLP(recipe)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(x) + self.deep(x)


class FeatureSteps(nn.Module):
    """In each step a mask chooses features, some more than once (after TabNet)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.norm = nn.BatchNorm1d(inputs)
        self.masks = nn.ModuleList(nn.Linear(recipe.width, inputs) for _ in range(recipe.depth))
        self.steps = nn.ModuleList(nn.Linear(inputs, 2 * recipe.width) for _ in range(recipe.depth))
        self.start = nn.Parameter(torch.zeros(recipe.width))
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        state, total = self.start.expand(len(x), -1), torch.zeros(())
        for mask, step in zip(self.masks, self.steps):
            state = F.glu(step(x * mask(state).softmax(1) * x.shape[1]), 1)
            total = total + F.relu(state)
        return self.head(total)


class BothSigns(Stack):
    """Positive and negative parts are kept separate (CReLU)."""

    def one(self, recipe: Recipe) -> nn.Module:
        return nn.Linear(2 * recipe.width, recipe.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(torch.cat([x.relu(), (-x).relu()], 1))
        return self.head(x)


class Fixup(Stack):
    """Residual branches without norms: the first matrix made small, the last one zero (Zhang et al. 2019)."""

    def one(self, recipe: Recipe) -> nn.Module:
        first, last = (nn.Linear(recipe.width, recipe.width) for _ in range(2))
        nn.init.normal_(first.weight, 0.0, math.sqrt(2 / recipe.width / recipe.depth))
        nn.init.zeros_(last.weight)
        return nn.Sequential(first, nn.ReLU(), last)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


class Polynomial(Stack):
    """Each layer multiplies the previous result by a new function of the input (Chrysos et al. 2020)."""

    def one(self, recipe: Recipe) -> nn.Module:
        return nn.Linear(SIZES[recipe.task][0], recipe.width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for layer in self.layers:
            h = h + torch.tanh(layer(x)) * h
        return self.head(h)


class Prototypes(nn.Module):
    """Classification by the distance of a code to learned examples of each class."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.code = MLP(recipe)
        size = SIZES[recipe.task][1]
        self.examples = nn.Parameter(torch.randn(size, 2, size))

    def forward(self, x: Tensor) -> Tensor:
        apart = torch.cdist(self.code(x), self.examples.flatten(0, 1)).unflatten(1, (-1, 2))
        return -apart.amin(2)


class Adapters(nn.Module):
    """A frozen network with a small trained one after each block (Houlsby et al. 2019)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.base = MLP(recipe).requires_grad_(False)
        self.down = nn.ModuleList(nn.Linear(recipe.width, 6) for _ in self.base.blocks)
        self.up = nn.ModuleList(nn.Linear(6, recipe.width) for _ in self.base.blocks)
        for layer in self.up:
            nn.init.normal_(layer.weight, 0.0, 0.01)
        self.head = nn.Linear(recipe.width, SIZES[recipe.task][1])

    def forward(self, x: Tensor) -> Tensor:
        for block, down, up in zip(self.base.blocks, self.down, self.up):
            x = block(x)
            x = x + up(F.gelu(down(x)))
        return self.head(x)


class BiasesAlone(MLP):
    """Only biases and the head are trained (BitFit)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        for block in self.blocks:
            block.layer.weight.requires_grad_(False)


class Predicting(nn.Module):
    """An encoder, and a predictor behind it (SimSiam)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.online = MLP(recipe)
        self.predictor = nn.Linear(SIZES[recipe.task][1], SIZES[recipe.task][1])


class ProductKeys(Stack):
    """Values are found by the product of two short lists of keys (Lample et al. 2019)."""

    def one(self, recipe: Recipe) -> nn.Module:
        return nn.ParameterDict(
            {
                "halves": nn.Parameter(torch.randn(2, 8, recipe.width // 2) / math.sqrt(recipe.width)),
                "found": nn.Parameter(torch.randn(64, recipe.width) / math.sqrt(recipe.width)),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.stem(x))
        for layer in self.layers:
            one, other = (x.unflatten(1, (2, -1))[:, i] @ layer["halves"][i].T for i in range(2))
            near = (one[:, :, None] + other[:, None]).flatten(1)
            best, place = near.topk(8, 1)
            x = x + torch.einsum("bk,bkw->bw", best.softmax(1), layer["found"][place])
        return self.head(x)


class Interactions(nn.Module):
    """Embeddings and a code of the numbers, all their products in pairs, and a network on top (DLRM)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.table = nn.Embedding(80, recipe.width)
        self.numbers = nn.Linear(3, recipe.width)
        self.top = nn.Sequential(nn.Linear(recipe.width + 3, 32), nn.ReLU(), nn.Linear(32, 1))
        nn.init.normal_(self.table.weight, 0.0, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        code = F.relu(self.numbers(x[:, 2:]))
        user, item = self.table(x[:, :2].long()).unbind(1)
        pairs = [(a * b).sum(1, keepdim=True) for a, b in ((user, item), (user, code), (item, code))]
        return self.top(torch.cat([code, *pairs], 1))


SIXTH_DENSE: dict[str, type[nn.Module]] = {
    "funnel": Funnel,
    "wide_deep": WideDeep,
    "feature_steps": FeatureSteps,
    "both_signs": BothSigns,
    "fixup": Fixup,
    "polynomial": Polynomial,
    "prototypes": Prototypes,
    "adapters": Adapters,
    "biases_alone": BiasesAlone,
    "predicting": Predicting,
    "product_keys": ProductKeys,
    "interactions": Interactions,
}
