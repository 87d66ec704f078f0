"""Models of images of the seventh set only."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.models import ACTIVATIONS, Block
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.tasks import SIZES

__all__ = ["SEVENTH_IMAGES"]


class AlexNet(nn.Module):
    """Convolutions with overlapping pools, and two dense layers with dropout (Krizhevsky et al. 2012)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        widths = [inputs, width, 2 * width, 2 * width]
        self.blocks = nn.ModuleList(
            Block(recipe, nn.Conv2d(a, b, 3, padding=1), b, False, dense=False) for a, b in pairwise(widths)
        )
        self.dense = nn.ModuleList(nn.Linear(a, 4 * width) for a in (8 * width, 4 * width))
        self.dropout = nn.Dropout(0.25)
        self.head = nn.Linear(4 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x)
            x = F.max_pool2d(x, 3, 2, 1) if i != 1 else x
        x = F.adaptive_max_pool2d(x, 2).flatten(1)
        for layer in self.dense:
            x = self.dropout(F.relu(layer(x)))
        return self.head(x)


class Bottleneck(nn.Module):
    """Filters of one pixel, of nine and of one again, with batch norms and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = width // 2
        self.down = nn.Conv2d(width, inner, 1, bias=False)
        self.look = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.up = nn.Conv2d(inner, width, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (inner, inner, width))
        self.activations = nn.ModuleList(nn.ReLU() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.activations[0](self.norms[0](self.down(x)))
        h = self.activations[1](self.norms[1](self.look(h)))
        return self.activations[2](x + self.norms[2](self.up(h)))


class BottleneckNet(nn.Module):
    """A stem, bottlenecks and a head, such as ResNet-50 has them (He et al. 2015)."""

    one = Bottleneck

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.stem = nn.Conv2d(inputs, recipe.width, 3, padding=1)
        self.stages = nn.ModuleList(self.one(recipe.width) for _ in range(recipe.depth))
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, stage in enumerate(self.stages):
            x = stage(x)
            x = F.avg_pool2d(x, 2) if i == 0 else x
        return self.head(x.mean((2, 3)))


class Ghost(nn.Module):
    """Half of the channels are cheap functions of the other half (GhostNet)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.main = nn.Conv2d(width, half, 1)
        self.cheap = nn.Conv2d(half, half, 3, padding=1, groups=half)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.main(x))
        return x + self.norm(torch.cat([h, F.relu(self.cheap(h))], 1))


class PoolMixer(nn.Module):
    """A mean over neighbors in place of attention, and a feed-forward part (MetaFormer)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, width), nn.GroupNorm(1, width)
        self.up, self.down = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + F.avg_pool2d(h, 3, 1, 1, count_include_pad=False) - h
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GhostNet(BottleneckNet):
    one = Ghost


class PoolNet(BottleneckNet):
    one = PoolMixer


class Mender(nn.Module):
    """Filters down to a quarter of the places and back up, for images as outputs."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in ((1, width), (width, 2 * width)))
        self.code = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in ((2 * width, width), (width, width))
        )
        self.activation = ACTIVATIONS[recipe.activation]()
        self.head = nn.Conv2d(width + 1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for layer in self.down:
            h = self.activation(layer(h))
        h = self.activation(self.code(h))
        for layer in self.up:
            h = self.activation(layer(h))
        return self.head(torch.cat([h, x], 1)).flatten(1)


SEVENTH_IMAGES: dict[str, type[nn.Module]] = {
    "alexnet": AlexNet,
    "bottleneck_net": BottleneckNet,
    "ghost_net": GhostNet,
    "pool_net": PoolNet,
    "mender": Mender,
}
