"""Models of images of the fourth set only."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.models import Block
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.tasks import SIZES


def conv_blocks(recipe: Recipe, widths: list[int]) -> nn.ModuleList:
    return nn.ModuleList(
        Block(recipe, nn.Conv2d(a, b, 3, padding=1), b, recipe.residual and a == b, dense=False)
        for a, b in pairwise(widths)
    )


class Inverted(nn.Module):
    """Inverted bottlenecks: wide inside, narrow outside, with a depthwise filter (MobileNet v2)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        self.stem = nn.Conv2d(inputs, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, 3 * width, 1, bias=False),
                nn.BatchNorm2d(3 * width),
                nn.ReLU6(),
                nn.Conv2d(3 * width, 3 * width, 3, padding=1, groups=3 * width, bias=False),
                nn.BatchNorm2d(3 * width),
                nn.ReLU6(),
                nn.Conv2d(3 * width, width, 1, bias=False),
                nn.BatchNorm2d(width),
            )
            for _ in range(recipe.depth)
        )
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


class Transposed(nn.Module):
    """Strided convolutions down and transposed convolutions back up; returns an image."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        self.down = nn.ModuleList([nn.Conv2d(inputs, width, 3, 2, 1), nn.Conv2d(width, 2 * width, 3, 2, 1)])
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(2 * width, width, 2, 2), nn.ConvTranspose2d(width, outputs, 2, 2)]
        )
        self.activation = nn.LeakyReLU(0.1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.down:
            x = self.activation(layer(x))
        return self.up[1](self.activation(self.up[0](x)))


class SubPixel(nn.Module):
    """An image of twice the size, made by rearranging channels (Shi et al. 2016)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.blocks = conv_blocks(recipe, [inputs] + [recipe.width] * (recipe.depth - 1))
        self.head = nn.Conv2d(recipe.width, 4 * outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        small = F.avg_pool2d(x, 2)
        x = small
        for block in self.blocks:
            x = block(x)
        return F.pixel_shuffle(self.head(x), 2) + F.interpolate(small, scale_factor=2.0)


class Causal(nn.Module):
    """Each pixel from those above and left of it, by masked filters (PixelCNN); four levels of gray."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs = SIZES[recipe.task][0]
        width = recipe.width
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(recipe.depth))
        self.head = nn.Conv2d(width, 4, 1)
        mask = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 0]])
        self.register_buffer("before", mask)
        self.register_buffer("here", mask + torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]]))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.first.weight * self.before, self.first.bias, padding=1))
        for layer in self.layers:
            x = x + F.relu(F.conv2d(x, layer.weight * self.here, layer.bias, padding=1))
        return self.head(x)


class Warped(nn.Module):
    """A small network turns and moves the image in front of another one (spatial transformer)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.locate = nn.Sequential(nn.Linear(64 * inputs, 24), nn.ReLU(), nn.Linear(24, 6))
        nn.init.zeros_(self.locate[2].weight)
        self.locate[2].bias.data = torch.tensor([1.0, 0, 0, 0, 1, 0])
        self.blocks = conv_blocks(recipe, [inputs] + [recipe.width] * (recipe.depth - 1))
        self.head = nn.Linear(recipe.width * 4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(self.locate(x.flatten(1)).view(-1, 2, 3), list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, align_corners=False)
        for block in self.blocks:
            x = block(x)
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


class ConvMixer(nn.Module):
    """A depthwise filter with a residual connection, then a pointwise layer (Trockman and Kolter)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        self.stem = nn.Conv2d(inputs, width, 2, stride=2)
        self.spatial = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, groups=width), nn.GELU(), nn.BatchNorm2d(width)
            )
            for _ in range(recipe.depth)
        )
        self.channels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width))
            for _ in range(recipe.depth)
        )
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.stem(x))
        for spatial, channels in zip(self.spatial, self.channels):
            x = channels(x + spatial(x))
        return self.head(x.mean((2, 3)))


class Products(nn.Module):
    """Products of channels, averaged over positions, with signed roots (bilinear pooling)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.blocks = conv_blocks(recipe, [inputs] + [recipe.width] * (recipe.depth - 1))
        self.head = nn.Linear(recipe.width**2, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        x = x.flatten(2)
        pooled = (x @ x.transpose(1, 2) / x.shape[2]).flatten(1)
        return self.head(F.normalize(pooled.sign() * (pooled.abs() + 1e-4).sqrt(), dim=1) * 4)


class Standardized(nn.Module):
    """Residual blocks with group norms and filters of zero mean and unit deviation (weight
    standardization)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        self.stem = nn.Conv2d(inputs, width, 3, padding=1)
        self.filters = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(recipe.depth)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(2, width) for _ in range(recipe.depth))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for filters, norm in zip(self.filters, self.norms):
            w = filters.weight
            w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
            x = x + F.relu(norm(F.conv2d(x, w / w[0].numel() ** 0.5, padding=1)))
        return self.head(x.mean((2, 3)))


class Again(nn.Module):
    """One convolution, applied repeatedly and pooled at the end (recurrent convolutional network)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.depth = recipe.depth
        self.stem = nn.Conv2d(inputs, recipe.width, 3, padding=1)
        self.states = nn.Conv2d(recipe.width, recipe.width, 3, padding=1)
        self.norm = nn.GroupNorm(1, recipe.width)
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        first = self.stem(x)
        x = F.relu(first)
        for _ in range(self.depth):
            x = F.relu(self.norm(first + self.states(x)))
        return self.head(x.mean((2, 3)))


class Waves(nn.Module):
    """A one-dimensional residual network over a signal."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        self.stem = nn.Conv1d(inputs, width, 5, stride=2, padding=2)
        self.first, self.second = (
            nn.ModuleList(nn.Conv1d(width, width, 3, padding=1, bias=False) for _ in range(recipe.depth))
            for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(2 * recipe.depth))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x.transpose(1, 2)))
        for i, (first, second) in enumerate(zip(self.first, self.second)):
            h = F.relu(self.norms[2 * i](first(x)))
            x = F.relu(x + self.norms[2 * i + 1](second(h)))
        return self.head(x.mean(2))


FOURTH_IMAGES: dict[str, type[nn.Module]] = {
    "inverted": Inverted,
    "transposed": Transposed,
    "sub_pixel": SubPixel,
    "causal": Causal,
    "warped": Warped,
    "conv_mixer": ConvMixer,
    "products": Products,
    "standardized": Standardized,
    "again": Again,
    "waves": Waves,
}
