"""Models of images of the eighth set only."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.models import ACTIVATIONS, make_norm
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.tasks import SIZES

__all__ = ["EIGHTH_IMAGES"]


class Picture(nn.Module):
    """A stem, layers that `one` makes and that are added to their input, the mean and a head."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.stem = nn.Conv2d(inputs, recipe.width, 3, padding=1)
        self.layers = nn.ModuleList(self.one(recipe) for _ in range(recipe.depth))
        self.head = nn.Linear(recipe.width, outputs)

    @abstractmethod
    def one(self, recipe: Recipe) -> nn.Module:
        """A layer."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, layer in enumerate(self.layers):
            x = x + layer(x)
            x = F.avg_pool2d(x, 2) if i == 0 else x
        return self.head(x.mean((2, 3)))


class Shift(nn.Module):
    """Quarters of the channels are shifted in four directions, then mixed (Wu et al. 2018)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.norm = make_norm(recipe, width, dense=False)
        self.up, self.down = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)
        self.activation = ACTIVATIONS[recipe.activation]()

    def forward(self, x: Tensor) -> Tensor:
        parts = self.norm(x).chunk(4, 1)
        moved = [part.roll(by, axis) for part, (by, axis) in zip(parts, ((1, 2), (-1, 2), (1, 3), (-1, 3)))]
        return self.down(self.activation(self.up(torch.cat(moved, 1))))


class Scales(nn.Module):
    """Quarters of the channels, each filtered together with the result of the last (Res2Net)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        quarter = recipe.width // 4
        self.filters = nn.ModuleList(nn.Conv2d(quarter, quarter, 3, padding=1) for _ in range(3))
        self.mix = nn.Conv2d(recipe.width, recipe.width, 1)
        self.norm = make_norm(recipe, recipe.width, dense=False)
        self.activation = ACTIVATIONS[recipe.activation]()

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = x.chunk(4, 1)
        done = [first]
        for part, look in zip(rest, self.filters):
            done.append(self.activation(look(part + done[-1])))
        return self.norm(self.mix(torch.cat(done, 1)))


class ChannelShuffle(nn.Module):
    """Grouped filters whose channels are then exchanged between the groups (ShuffleNet)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.first = nn.Conv2d(width, width, 1, groups=4)
        self.look = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.last = nn.Conv2d(width, width, 1, groups=4)
        self.norm = make_norm(recipe, width, dense=False)
        self.activation = ACTIVATIONS[recipe.activation]()

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.first(x))
        h = h.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2)
        return self.norm(self.last(self.look(h)))


class Response(nn.Module):
    """Filters whose response is divided by its own rms, with a learned threshold (Singh et al. 2020)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.look = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.gain, self.bias = nn.Parameter(torch.ones(width, 1, 1)), nn.Parameter(torch.zeros(width, 1, 1))
        self.threshold = nn.Parameter(torch.full((width, 1, 1), -1.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.look(x)
        x = x * torch.rsqrt(x.square().mean((2, 3), keepdim=True) + 1e-4)
        return torch.maximum(self.gain * x + self.bias, self.threshold)


class Octave(nn.Module):
    """Half of the channels at half of the resolution, with paths between both (Chen et al. 2019)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        half = recipe.width // 2
        self.paths = nn.ModuleDict(
            {name: nn.Conv2d(half, half, 3, padding=1) for name in ("fine", "coarse", "down", "up")}
        )
        self.activation = ACTIVATIONS[recipe.activation]()

    def forward(self, x: Tensor) -> Tensor:
        fine, coarse = x.chunk(2, 1)
        small = F.avg_pool2d(coarse, 2)
        low = self.paths["coarse"](small) + self.paths["down"](F.avg_pool2d(fine, 2))
        high = self.paths["fine"](fine) + F.interpolate(self.paths["up"](small), scale_factor=2.0)
        return self.activation(torch.cat([high, F.interpolate(low, scale_factor=2.0)], 1))


class PixelGraph(nn.Module):
    """Each pixel adds what its four neighbors say, then thinks by itself (graph isomorphism network)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.keep = nn.Parameter(torch.zeros(1))
        self.think = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1))
        self.register_buffer("links", torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]]).view(1, 1, 3, 3) / 4)

    def forward(self, x: Tensor) -> Tensor:
        told = F.conv2d(x, self.links.to(x.dtype).expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1])
        return self.think((1 + self.keep) * x + told)


class Attended(nn.Module):
    """Filters, then weights of channels and of places (convolutional block attention)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.look = nn.Conv2d(width, width, 3, padding=1)
        self.channels = nn.Sequential(nn.Linear(width, width // 4), nn.ReLU(), nn.Linear(width // 4, width))
        self.places = nn.Conv2d(2, 1, 3, padding=1)
        self.activation = ACTIVATIONS[recipe.activation]()

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.look(x))
        weight = torch.sigmoid(self.channels(x.mean((2, 3))) + self.channels(x.amax((2, 3))))
        x = x * weight[:, :, None, None]
        seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.places(seen))


def _net(layer: type[nn.Module]) -> type[nn.Module]:
    """A `Picture` of such layers."""
    return type(f"{layer.__name__}Net", (Picture,), {"one": lambda self, recipe: layer(recipe)})


EIGHTH_IMAGES: dict[str, type[nn.Module]] = {
    "shift_net": _net(Shift),
    "scales_net": _net(Scales),
    "channel_shuffle": _net(ChannelShuffle),
    "response_norm": _net(Response),
    "octave": _net(Octave),
    "pixel_graph": _net(PixelGraph),
    "attended": _net(Attended),
}
