"""Models of the sixth set only, with matrices or steps other than an MLP's."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.sixth.dense import Stack
from benchmarks.diagnosis.tasks import SIZES

__all__ = ["SIXTH_LINKS"]


class QuaternionLinear(nn.Module):
    """Four parts of a vector by the product of quaternions."""

    SIGNS = ((1, -1, -1, -1), (1, 1, -1, 1), (1, 1, 1, -1), (1, -1, 1, 1))
    PARTS = ((0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0))

    def __init__(self, width: int) -> None:
        super().__init__()
        quarter = width // 4
        self.parts = nn.Parameter(torch.randn(4, quarter, quarter) / math.sqrt(width / 2))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        rows = [
            torch.cat([sign * self.parts[part] for sign, part in zip(*row)], 1)
            for row in zip(self.SIGNS, self.PARTS)
        ]
        return F.linear(x, torch.cat(rows), self.bias)


class Quaternions(Stack):
    """An MLP of `QuaternionLinear` layers (Parcollet et al. 2019)."""

    def one(self, recipe: Recipe) -> nn.Module:
        return QuaternionLinear(recipe.width)


class TrainLinear(nn.Module):
    """A square matrix as a train of two tensors of a small rank."""

    def __init__(self, width: int, rank: int = 4) -> None:
        super().__init__()
        self.side = round(math.sqrt(width))
        self.left = nn.Parameter(torch.randn(self.side, self.side, rank) / math.sqrt(self.side))
        self.right = nn.Parameter(torch.randn(rank, self.side, self.side) / math.sqrt(self.side * rank / 2))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        grid = x.unflatten(-1, (self.side, self.side))
        return torch.einsum("bij,ikr,rjl->bkl", grid, self.left, self.right).flatten(1) + self.bias


class TensorTrain(Stack):
    """An MLP of `TrainLinear` layers; the width is a square number (Novikov et al. 2015)."""

    def one(self, recipe: Recipe) -> nn.Module:
        return TrainLinear(recipe.width)


class SparseLinear(nn.Linear):
    """A fifth of the connections, chosen once."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width)
        self.register_buffer("mask", (torch.rand(width, width) < 0.2).float())
        nn.init.normal_(self.weight, 0.0, math.sqrt(2 / (0.2 * width)))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class SparseLinks(Stack):
    """An MLP of `SparseLinear` layers."""

    def one(self, recipe: Recipe) -> nn.Module:
        return SparseLinear(recipe.width)


class GroupSort(Stack):
    """Pairs of units are sorted in place of an activation (Anil et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x).unflatten(1, (-1, 2)).sort(2).values.flatten(1)
        return self.head(x)


class RungeKutta(Stack):
    """One differential equation, solved by two fourth-order Runge–Kutta steps."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for _ in range(2):
            a = self._slope(h)
            b = self._slope(h + a / 4)
            c = self._slope(h + b / 4)
            h = h + (a + 2 * b + 2 * c + self._slope(h + c / 2)) / 12
        return self.head(h)

    def _slope(self, h: Tensor) -> Tensor:
        for layer in self.layers:
            h = torch.tanh(layer(h))
        return h


class RandomKernel(nn.Module):
    """Random cosines that are not trained, and a linear layer that is (Rahimi and Recht 2007)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.register_buffer("waves", torch.randn(inputs, recipe.width) / math.sqrt(inputs))
        self.register_buffer("phases", 2 * math.pi * torch.rand(recipe.width))
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(math.sqrt(2) * torch.cos(x @ self.waves + self.phases))


SIXTH_LINKS: dict[str, type[nn.Module]] = {
    "quaternions": Quaternions,
    "tensor_train": TensorTrain,
    "sparse_links": SparseLinks,
    "group_sort": GroupSort,
    "runge_kutta": RungeKutta,
    "random_kernel": RandomKernel,
}
