"""Models of images of the ninth set only."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.models import ACTIVATIONS, make_norm
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.eighth.images import Picture

__all__ = ["NINTH_IMAGES"]


class Conditional(nn.Module):
    """Filters that are a mixture of three for each image (Yang et al. 2019)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.filters = nn.Parameter(torch.randn(3, width, width, 3, 3) / (9 * width) ** 0.5)
        self.choose = nn.Linear(width, 3)
        self.norm = make_norm(recipe, width, dense=False)
        self.activation = ACTIVATIONS[recipe.activation]()

    def forward(self, x: Tensor) -> Tensor:
        share = torch.sigmoid(self.choose(x.mean((2, 3))))
        looks = torch.stack([F.conv2d(x, weight, padding=1) for weight in self.filters], 1)
        return self.activation(self.norm((share[:, :, None, None, None] * looks).sum(1)))


class Selective(nn.Module):
    """Filters of two sizes, weighed for each channel by what the image has (Li et al. 2019)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.near = nn.Conv2d(width, width, 3, padding=1)
        self.far = nn.Conv2d(width, width, 3, padding=2, dilation=2)
        self.weigh = nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, 2 * width))
        self.activation = ACTIVATIONS[recipe.activation]()

    def forward(self, x: Tensor) -> Tensor:
        looks = torch.stack([self.activation(self.near(x)), self.activation(self.far(x))], 1)
        share = self.weigh(looks.sum(1).mean((2, 3))).unflatten(1, (2, -1)).softmax(1)
        return (share[..., None, None] * looks).sum(1)


class ChannelNeighbors(nn.Module):
    """Filters, and a gate for each channel from the means of those beside it (Wang et al. 2020)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.look = nn.Conv2d(recipe.width, recipe.width, 3, padding=1)
        self.gate = nn.Conv1d(1, 1, 3, padding=1)
        self.norm = make_norm(recipe, recipe.width, dense=False)
        self.activation = ACTIVATIONS[recipe.activation]()

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.look(x)))
        return x * torch.sigmoid(self.gate(x.mean((2, 3))[:, None]))[:, 0, :, None, None]


class Context(nn.Module):
    """Filters, and one attended summary of the image that is added to each place (Cao et al. 2019)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.look, self.query = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, 1, 1)
        self.tell = nn.Sequential(
            nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width)
        )
        self.activation = ACTIVATIONS[recipe.activation]()

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.look(x))
        share = self.query(x).flatten(1).softmax(1)
        return x + self.tell((x.flatten(2) * share[:, None]).sum(2))[:, :, None, None]


class Fractal(nn.Module):
    """The mean of one filter and of two pairs of them, each of which is such a mean (Larsson et al. 2017)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.filters = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(4))
        self.norms = nn.ModuleList(make_norm(recipe, width, dense=False) for _ in range(4))
        self.activation = ACTIVATIONS[recipe.activation]()

    def _one(self, i: int, x: Tensor) -> Tensor:
        return self.activation(self.norms[i](self.filters[i](x)))

    def forward(self, x: Tensor) -> Tensor:
        half = (self._one(0, x) + self._one(1, self._one(1, x))) / 2
        return (self._one(2, x) + self._one(3, half)) / 2


class Mixed(nn.Module):
    """Depthwise filters of three sizes, each for a third of the channels, then mixed (Tan and Le 2019)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width, third = recipe.width, recipe.width // 3
        self.looks = nn.ModuleList(
            nn.Conv2d(third, third, size, padding=size // 2, groups=third) for size in (3, 5, 7)
        )
        self.mix, self.norm = nn.Conv2d(width, width, 1), make_norm(recipe, width, dense=False)
        self.activation = ACTIVATIONS[recipe.activation]()

    def forward(self, x: Tensor) -> Tensor:
        seen = [look(part) for look, part in zip(self.looks, x.chunk(3, 1))]
        return self.activation(self.norm(self.mix(torch.cat(seen, 1))))


class Contrast(nn.Module):
    """A wide block whose channels are scaled by their share of the response (ConvNeXt v2)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.look, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.GroupNorm(1, width)
        self.up, self.down = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)
        self.gain = nn.Parameter(0.1 * torch.randn(1, 2 * width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, 2 * width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.up(self.norm(self.look(x))))
        size = (x.square().sum((2, 3), keepdim=True) + 1e-6).sqrt()
        return self.down(self.gain * (x * size / size.mean(1, keepdim=True)) + self.bias + x)


class Softened(nn.Module):
    """Filters, then a blur by fixed weights, so that small shifts matter less (Zhang 2019)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.look = nn.Conv2d(recipe.width, recipe.width, 3, padding=1)
        self.norm = make_norm(recipe, recipe.width, dense=False)
        self.activation = ACTIVATIONS[recipe.activation]()
        soft = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("blur", (soft[:, None] * soft / 16).expand(recipe.width, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.look(x)))
        return F.conv2d(x, self.blur.to(x.dtype), padding=1, groups=len(self.blur))


class Gabor(nn.Module):
    """Filters that are waves under a bell, of learned directions, lengths and widths, then mixed."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.angle, self.phase = (nn.Parameter(3.14 * torch.rand(width)) for _ in range(2))
        self.rate, self.size = nn.Parameter(0.5 + torch.rand(width)), nn.Parameter(torch.full((width,), 1.5))
        self.mix = nn.Conv2d(width, width, 1)
        self.activation = ACTIVATIONS[recipe.activation]()

    def forward(self, x: Tensor) -> Tensor:
        down, right = torch.meshgrid(torch.arange(-2.0, 3), torch.arange(-2.0, 3), indexing="ij")
        angle, phase, rate, size = (v[:, None, None] for v in (self.angle, self.phase, self.rate, self.size))
        along = down * angle.sin() + right * angle.cos()
        bell = torch.exp(-(down.square() + right.square()) / (2 * size.square() + 0.1))
        filters = (bell * torch.cos(2 * rate * along + phase) / 2)[:, None].to(x.dtype)
        return self.activation(self.mix(F.conv2d(x, filters, padding=2, groups=len(filters))))


def _net(layer: type[nn.Module]) -> type[nn.Module]:
    """A `Picture` of such layers."""
    return type(f"{layer.__name__}Net", (Picture,), {"one": lambda self, recipe: layer(recipe)})


NINTH_IMAGES: dict[str, type[nn.Module]] = {
    "conditional_filters": _net(Conditional),
    "selective_kernels": _net(Selective),
    "channel_neighbors": _net(ChannelNeighbors),
    "global_context": _net(Context),
    "fractal": _net(Fractal),
    "mixed_kernels": _net(Mixed),
    "contrast_blocks": _net(Contrast),
    "anti_aliased": _net(Softened),
    "gabor": _net(Gabor),
}
