"""Models of images, points and graphs of the fifth set only."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.models import ACTIVATIONS, Block, make_norm
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.fourth.dense import dense_blocks
from benchmarks.diagnosis.tasks import SIZES


def filters(recipe: Recipe, widths: list[int], size: int = 3, **options: int) -> nn.ModuleList:
    """Convolutions that keep the size, as `Block`s."""
    return nn.ModuleList(
        Block(
            recipe,
            nn.Conv2d(a, b, size, padding=size // 2, **options),
            b,
            recipe.residual and a == b,
            dense=False,
        )
        for a, b in pairwise(widths)
    )


class Pooled(nn.Module):
    """`blocks` of images, pooled into a head."""

    blocks: nn.ModuleList

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.inputs, outputs = SIZES[recipe.task]
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Shuffled(Pooled):
    """Filters in four groups, with channel shuffles in between (ResNeXt, ShuffleNet)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.stem = nn.Conv2d(self.inputs, recipe.width, 3, padding=1)
        self.blocks = filters(recipe, [recipe.width] * recipe.depth, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x).unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2)
        return self.head(x.mean((2, 3)))


class Involution(Pooled):
    """A filter for each position, generated from its features (Li et al. 2021)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.stem = nn.Conv2d(self.inputs, recipe.width, 3, padding=1)
        self.make = nn.ModuleList(nn.Conv2d(recipe.width, 9, 1) for _ in range(recipe.depth))
        self.mix = nn.ModuleList(nn.Conv2d(recipe.width, recipe.width, 1) for _ in range(recipe.depth))
        self.norms = nn.ModuleList(nn.BatchNorm2d(recipe.width) for _ in range(recipe.depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for make, mix, norm in zip(self.make, self.mix, self.norms):
            around = F.unfold(x, 3, padding=1).unflatten(1, (x.shape[1], 9)).unflatten(3, x.shape[2:])
            x = x + F.relu(norm(mix((around * make(x)[:, None]).sum(2))))
        return self.head(x.mean((2, 3)))


class NonLocal(Pooled):
    """Filters, with attention between all positions in the middle (Wang et al. 2018)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.blocks = filters(recipe, [self.inputs] + [recipe.width] * (recipe.depth - 1))
        self.look = nn.Conv2d(recipe.width, 3 * recipe.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks[:-1]:
            x = block(x)
        q, k, v = self.look(x).flatten(2).chunk(3, 1)
        seen = v @ (q.transpose(1, 2) @ k / math.sqrt(q.shape[1])).softmax(2).transpose(1, 2)
        return self.head(self.blocks[-1](x + seen.view_as(x)).mean((2, 3)))


class Local(nn.Module):
    """Filters that are not shared between positions (locally connected), and a layer over them."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.weight = nn.Parameter(torch.randn(36, recipe.width, 9 * inputs) * math.sqrt(2 / (9 * inputs)))
        self.bias = nn.Parameter(torch.zeros(36, recipe.width))
        self.blocks = dense_blocks(recipe, [36 * recipe.width, 48])
        self.head = nn.Linear(48, outputs)

    def forward(self, x: Tensor) -> Tensor:
        places = F.unfold(x, 3).permute(2, 1, 0)
        h = F.relu(torch.einsum("pwi,pib->bpw", self.weight, places) + self.bias)
        return self.head(self.blocks[0](h.flatten(1)))


class Pyramid(nn.Module):
    """Filters of several dilations side by side (ASPP) over two scales, one output for each position."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        self.stem = nn.Conv2d(inputs, width, 3, padding=1)
        self.scales = nn.ModuleList(nn.Conv2d(width, width, 3, padding=d, dilation=d) for d in (1, 2, 4))
        self.below = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.norm = make_norm(recipe, width, dense=False)
        self.activation = ACTIVATIONS[recipe.activation]()
        self.head = nn.Conv2d(2 * width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.stem(x)))
        below = self.activation(self.below(x))
        wide = self.activation(torch.stack([scale(x) for scale in self.scales]).sum(0))
        return self.head(torch.cat([wide, F.interpolate(below, scale_factor=2.0)], 1))


class PointNet(nn.Module):
    """The maximum over the features of all points, after a learned rotation."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.turn = nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, inputs * inputs))
        self.blocks = dense_blocks(recipe, [inputs] + [recipe.width] * (recipe.depth - 1))
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        turn = self.turn(x).mean(1).unflatten(1, (x.shape[2], -1))
        x = x + x @ turn
        for block in self.blocks:
            x = block(x)
        return self.head(x.amax(1))


class EdgeConv(nn.Module):
    """Layers over the differences to each point's four nearest, which change with the features (DGCNN)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        widths = [inputs] + [recipe.width] * recipe.depth
        self.layers = nn.ModuleList(nn.Linear(2 * a, b) for a, b in pairwise(widths))
        self.head = nn.Linear(2 * recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            near = torch.cdist(x, x).topk(5, largest=False).indices[..., 1:]
            others = x[torch.arange(len(x))[:, None, None], near]
            here = x[:, :, None].expand_as(others)
            x = F.leaky_relu(layer(torch.cat([here, others - here], 3)), 0.2).amax(2)
        return self.head(torch.cat([x.amax(1), x.mean(1)], 1))


class Messages(nn.Module):
    """Nodes updated by summed messages through a gated cell, and summed at the end (GIN with GRU)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        outputs = SIZES[recipe.task][1]
        self.start = nn.Linear(2, recipe.width)
        self.blocks = dense_blocks(recipe, [recipe.width] * (recipe.depth + 1))
        self.update = nn.GRUCell(recipe.width, recipe.width)
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, links: Tensor) -> Tensor:
        degree = links.sum(2, keepdim=True)
        closed = torch.diagonal(links @ links @ links, dim1=1, dim2=2)[..., None]
        x = self.start(torch.cat([degree / 4, closed / 8], 2))
        for block in self.blocks:
            said = (links @ block(x)) / 4
            x = self.update(said.flatten(0, 1), x.flatten(0, 1)).view_as(x)
        return self.head(x.mean(1))


class Edges(nn.Module):
    """A state for each pair of nodes, updated through all third nodes (triangle updates); a mean over
    pairs."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        outputs = SIZES[recipe.task][1]
        width = recipe.width
        self.stem = nn.Linear(1, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(recipe.depth))
        self.sides = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(recipe.depth))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(recipe.depth))
        self.head = nn.Linear(width, outputs)

    def forward(self, links: Tensor) -> Tensor:
        x = self.stem(links[..., None])
        for norm, sides, out in zip(self.norms, self.sides, self.out):
            a, b = torch.sigmoid(sides(norm(x))).chunk(2, 3)
            x = x + out(torch.einsum("bikc,bkjc->bijc", a, b) / math.sqrt(links.shape[1]))
        return self.head(x.mean((1, 2)))


FIFTH_SPATIAL: dict[str, type[nn.Module]] = {
    "shuffled": Shuffled,
    "involution": Involution,
    "non_local": NonLocal,
    "local": Local,
    "pyramid": Pyramid,
    "point_net": PointNet,
    "edge_conv": EdgeConv,
    "messages": Messages,
    "edges": Edges,
}
