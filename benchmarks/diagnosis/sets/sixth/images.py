"""Models of images of the sixth set only."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.models import ACTIVATIONS, Block
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.tasks import SIZES

__all__ = ["SIXTH_IMAGES"]


class LeNet(nn.Module):
    """Two convolutions with tanh and mean pooling, three dense layers (LeCun et al. 1998)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.dense = nn.Linear(2 * width * 4, 4 * width)
        self.last = nn.Linear(4 * width, 3 * width)
        self.acts = nn.ModuleList(ACTIVATIONS[recipe.activation]() for _ in range(4))
        self.head = nn.Linear(3 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.acts[0](self.first(x)), 2)
        x = F.adaptive_avg_pool2d(self.acts[1](self.second(x)), 2)
        return self.head(self.acts[3](self.last(self.acts[2](self.dense(x.flatten(1))))))


class VGG(nn.Module):
    """Pairs of convolutions and a pool, wider each time, followed by dense layers with dropout."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        widths = [inputs, recipe.width, recipe.width, 2 * recipe.width, 2 * recipe.width]
        self.blocks = nn.ModuleList(
            Block(recipe, nn.Conv2d(a, b, 3, padding=1), b, False, dense=False) for a, b in pairwise(widths)
        )
        self.dense = nn.Linear(widths[-1] * 4, 2 * recipe.width)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(2 * recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x)
            x = F.max_pool2d(x, 2) if i == 1 else x
        x = F.adaptive_max_pool2d(x, 2).flatten(1)
        return self.head(self.dropout(F.relu(self.dense(x))))


class ResidualPair(nn.Module):
    """Two convolutions with batch norms and a shortcut, in groups if the recipe says so."""

    def __init__(self, inputs: int, width: int, groups: int) -> None:
        super().__init__()
        stride = 1 if inputs == width else 2
        self.first = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(width, width, 3, 1, 1, groups=groups, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.shortcut = nn.Conv2d(inputs, width, 1, stride, bias=False) if stride == 2 else nn.Identity()
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.norm1(self.first(x)))
        return self.activation(self.shortcut(x) + self.norm2(self.second(h)))


class ResNet(nn.Module):
    """A stem and residual pairs, the last of them twice as wide at half the size (He et al. 2015)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width, groups = recipe.width, int(recipe.extra("groups") or 1)
        self.stem = nn.Conv2d(inputs, width, 3, padding=1)
        pairs = [ResidualPair(width, width, groups) for _ in range(recipe.depth - 1)]
        self.pairs = nn.Sequential(*pairs, ResidualPair(width, 2 * width, groups))
        self.head = nn.Linear(2 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pairs(self.stem(x)).mean((2, 3)))


class Fire(nn.Module):
    """Channels are squeezed and then expanded by filters of two sizes (SqueezeNet)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        self.stem = nn.Conv2d(inputs, width, 3, padding=1)
        self.squeeze = nn.ModuleList(nn.Conv2d(width, width // 2, 1) for _ in range(recipe.depth))
        self.small = nn.ModuleList(nn.Conv2d(width // 2, width // 2, 1) for _ in range(recipe.depth))
        self.large = nn.ModuleList(
            nn.Conv2d(width // 2, width // 2, 3, padding=1) for _ in range(recipe.depth)
        )
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.elu(self.stem(x))
        for squeeze, small, large in zip(self.squeeze, self.small, self.large):
            h = F.elu(squeeze(x))
            x = F.elu(torch.cat([small(h), large(h)], 1))
        return self.head(x.mean((2, 3)))


class Coordinates(nn.Module):
    """Two channels tell each filter where it is (CoordConv); dilated filters."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        widths = [inputs + 2] + [recipe.width] * recipe.depth
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=i + 1, dilation=i + 1) for i, (a, b) in enumerate(pairwise(widths))
        )
        self.activation = ACTIVATIONS[recipe.activation]()
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-1]
        at = torch.linspace(-1, 1, size, dtype=x.dtype)
        x = torch.cat([x, at.expand(len(x), 1, size, size), at[:, None].expand(len(x), 1, size, size)], 1)
        for layer in self.layers:
            x = self.activation(layer(x))
        return self.head(x.mean((2, 3)))


class Rotations(nn.Module):
    """Filters in four orientations, the largest of which counts (a group convolution, pooled)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        widths = [inputs] + [recipe.width] * recipe.depth
        self.filters = nn.ParameterList(
            torch.randn(b, a, 3, 3) * (2 / 9 / a) ** 0.5 for a, b in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(1, recipe.width) for _ in range(recipe.depth))
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for filters, norm in zip(self.filters, self.norms):
            turned = torch.cat([filters.rot90(k, (2, 3)) for k in range(4)])
            x = F.conv2d(x, turned, padding=1).unflatten(1, (4, -1)).amax(1)
            x = F.relu(norm(x))
        return self.head(x.mean((2, 3)))


class Automaton(nn.Module):
    """A cellular automaton: one rule repeatedly updates the state of each pixel from its neighbors."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.see = nn.Conv2d(recipe.width + inputs, 2 * recipe.width, 3, padding=1)
        self.change = nn.Conv2d(2 * recipe.width, recipe.width, 1)
        nn.init.normal_(self.change.weight, 0.0, 0.15)
        self.steps = recipe.depth
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), self.head.in_features, *x.shape[2:])
        for _ in range(self.steps):
            state = state + self.change(F.relu(self.see(torch.cat([x, state], 1))))
        return self.head(state.mean((2, 3)))


class Axial(nn.Module):
    """Attention along rows, then along columns."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        self.stem = nn.Conv2d(inputs, width, 2, 2)
        self.place = nn.Parameter(0.1 * torch.randn(8, 8, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * recipe.depth))
        self.mixers = nn.ModuleList(
            nn.MultiheadAttention(width, 2, batch_first=True) for _ in range(2 * recipe.depth)
        )
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        x = x + self.place[: x.shape[1], : x.shape[2]]
        for norm, mixer in zip(self.norms, self.mixers):
            rows = norm(x).flatten(0, 1)
            x = (x + mixer(rows, rows, rows, need_weights=False)[0].view_as(x)).transpose(1, 2)
        return self.head(x.mean((1, 2)))


class ConvGAN(nn.Module):
    """A generator of transposed convolutions and a discriminator of strided ones (DCGAN)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.generator = nn.Sequential(
            nn.Linear(8, 4 * width),
            nn.Unflatten(1, (width, 2, 2)),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, 4, 2, 1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.ConvTranspose2d(width, 1, 4, 2, 1),
            nn.Flatten(),
        )
        self.discriminator = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(4 * width, 1),
        )


class ConvAutoencoder(nn.Module):
    """Strided convolutions to a code, and nearest neighbors and convolutions back."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.encode = nn.Sequential(
            nn.Conv2d(1, width, 3, 2, 1), nn.SiLU(), nn.Conv2d(width, width, 3, 2, 1), nn.SiLU()
        )
        self.code = nn.Linear(4 * width, 12)
        self.decode = nn.Linear(12, 4 * width)
        self.draw = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, 1, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.encode(x.view(-1, 1, 8, 8))
        back = self.decode(self.code(h.flatten(1))).view_as(h)
        return self.draw(F.silu(back)).flatten(1)


SIXTH_IMAGES: dict[str, type[nn.Module]] = {
    "lenet": LeNet,
    "vgg": VGG,
    "resnet": ResNet,
    "fire": Fire,
    "coordinates": Coordinates,
    "rotations": Rotations,
    "automaton": Automaton,
    "axial": Axial,
    "conv_gan": ConvGAN,
    "conv_autoencoder": ConvAutoencoder,
}
