"""Models of feed-forward layers, from a recipe: dense and convolutional, plain, residual and normalized."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.tasks import SIZES

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.01),
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softsign": nn.Softsign,
    "relu6": nn.ReLU6,
    "identity": nn.Identity,
    "mish": nn.Mish,
    "prelu": nn.PReLU,
    "hardswish": nn.Hardswish,
    "softmax": lambda: nn.Softmax(-1),
}


def make_norm(recipe: Recipe, width: int, dense: bool = True) -> nn.Module:
    if recipe.norm == "batch":
        return nn.BatchNorm1d(width) if dense else nn.BatchNorm2d(width)
    if recipe.norm == "layer":
        return nn.LayerNorm(width) if dense else nn.GroupNorm(1, width)
    return nn.Identity()


class Block(nn.Module):
    """A layer, its normalization and its activation; with a residual connection if the recipe says so."""

    def __init__(
        self, recipe: Recipe, layer: nn.Module, width: int, residual: bool, dense: bool = True
    ) -> None:
        super().__init__()
        self.layer = layer
        self.norm = make_norm(recipe, width, dense)
        self.activation = ACTIVATIONS[recipe.activation]()
        self.dropout = nn.Dropout(recipe.dropout)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(self.activation(self.norm(self.layer(x))))
        return x + y if self.residual else y


class MLP(nn.Module):
    """`depth` matrices: `depth - 1` blocks and a head."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        widths = [inputs] + [recipe.width] * (recipe.depth - 1)
        self.blocks = nn.ModuleList(
            Block(recipe, nn.Linear(a, b), b, recipe.residual and a == b) for a, b in pairwise(widths)
        )
        self.head = nn.Linear(widths[-1], outputs)
        self.detach = recipe.extra("detach") is not None
        if recipe.extra("unused") is not None:
            self.unused = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.detach() if self.detach else x)


class CNN(nn.Module):
    """Convolutions of 8 × 8 images, with one stride in the middle, pooled into a head."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        widths = [inputs] + [recipe.width] * (recipe.depth - 1)
        bias = recipe.norm != "batch"
        self.blocks = nn.ModuleList(
            Block(
                recipe,
                nn.Conv2d(
                    a,
                    b,
                    3,
                    stride=2 if i == recipe.depth // 2 and not recipe.residual else 1,
                    padding=1,
                    bias=bias,
                ),
                b,
                recipe.residual and a == b,
                dense=False,
            )
            for i, (a, b) in enumerate(pairwise(widths))
        )
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Separable(nn.Module):
    """Depthwise and pointwise convolutions in turn."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        self.stem = nn.Conv2d(inputs, width, 3, padding=1)
        self.depthwise = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(recipe.depth)
        )
        self.pointwise = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(recipe.depth))
        self.norms = nn.ModuleList(make_norm(recipe, width, dense=False) for _ in range(recipe.depth))
        self.activation = ACTIVATIONS[recipe.activation]()
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.stem(x))
        for depthwise, pointwise, norm in zip(self.depthwise, self.pointwise, self.norms):
            x = x + self.activation(norm(pointwise(depthwise(x))))
        return self.head(x.mean((2, 3)))


class Autoencoder(nn.Module):
    """Down to a code of `width // 4` and back."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        widths = [inputs, width, width // 2, width // 4, width // 2, width]
        self.noise = float(recipe.extra("noise") or 0)
        self.blocks = nn.ModuleList(Block(recipe, nn.Linear(a, b), b, False) for a, b in pairwise(widths))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.noise * torch.randn_like(x) if self.noise else x
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Highway(nn.Module):
    """Layers with a gate that starts closed (its bias is -2), as Srivastava et al. start them."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.stem = nn.Linear(inputs, recipe.width)
        self.layers = nn.ModuleList(nn.Linear(recipe.width, recipe.width) for _ in range(recipe.depth))
        self.gates = nn.ModuleList(nn.Linear(recipe.width, recipe.width) for _ in range(recipe.depth))
        self.activation = ACTIVATIONS[recipe.activation]()
        for gate in self.gates:
            nn.init.constant_(gate.bias, -2.0)
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer, gate in zip(self.layers, self.gates):
            t = torch.sigmoid(gate(x))
            x = t * self.activation(layer(x)) + (1 - t) * x
        return self.head(x)


class ReZero(nn.Module):
    """Residual blocks with a scalar in front that starts at zero."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.stem = nn.Linear(inputs, recipe.width)
        self.layers = nn.ModuleList(nn.Linear(recipe.width, recipe.width) for _ in range(recipe.depth))
        self.scales = nn.ParameterList(torch.zeros(1) for _ in range(recipe.depth))
        self.activation = ACTIVATIONS[recipe.activation]()
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer, scale in zip(self.layers, self.scales):
            x = x + scale * self.activation(layer(x))
        return self.head(x)


class Siren(nn.Module):
    """Sines of frequency 30 and their initialization (Sitzmann et al. 2020)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        widths = [inputs] + [recipe.width] * (recipe.depth - 1)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.head = nn.Linear(recipe.width, outputs)
        for i, layer in enumerate([*self.layers, self.head]):
            limit = 1 / inputs if i == 0 else math.sqrt(6 / recipe.width) / 30
            nn.init.uniform_(layer.weight, -limit, limit)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(30 * layer(x))
        return self.head(x)
