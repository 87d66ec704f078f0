"""Attention and related models, used in the fifth set only."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.fifth.sequences import Reader


class Retention(Reader):
    """Attention without a softmax that decays with distance at a fixed rate for each head (RetNet)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(recipe.depth))
        self.qkv = nn.ModuleList(nn.Linear(width, 4 * width, bias=False) for _ in range(recipe.depth))
        self.out = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(recipe.depth))
        self.groups = nn.ModuleList(nn.GroupNorm(2, width) for _ in range(recipe.depth))

    def states(self, x: Tensor) -> Tensor:
        at = torch.arange(x.shape[1])
        pace = torch.tensor([0.7, 0.95])[:, None, None]
        fading = (pace ** (at[:, None] - at).clamp_min(0)) * (at[:, None] >= at)
        for norm, qkv, out, group in zip(self.norms, self.qkv, self.out, self.groups):
            q, k, v, gate = qkv(norm(x)).chunk(4, 2)
            q, k, v = (t.unflatten(2, (2, -1)).transpose(1, 2) for t in (q, k, v))
            seen = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3]) * fading) @ v
            seen = seen.transpose(1, 2).flatten(2)
            x = x + out(F.silu(gate) * group(seen.transpose(1, 2)).transpose(1, 2))
        return x


class LongFilter(Reader):
    """Gates, and filters as long as the sequence that a small network generates from the distance (Hyena)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(recipe.depth))
        self.projections = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(recipe.depth))
        self.filters = nn.ModuleList(
            nn.Sequential(nn.Linear(5, 16), nn.GELU(), nn.Linear(16, width)) for _ in range(recipe.depth)
        )
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(recipe.depth))

    def states(self, x: Tensor) -> Tensor:
        places = x.shape[1]
        at = torch.arange(places) / places
        waves = torch.stack([at, *(f(math.pi * n * at) for n in (1, 3) for f in (torch.sin, torch.cos))], 1)
        for norm, projection, filters, out in zip(self.norms, self.projections, self.filters, self.out):
            a, b, v = projection(norm(x)).chunk(3, 2)
            taps = filters(waves) * torch.exp(-4 * at)[:, None]
            taken = torch.fft.rfft(taps, 2 * places, dim=0) * torch.fft.rfft(b * v, 2 * places, dim=1)
            x = x + out(a * torch.fft.irfft(taken, 2 * places, dim=1)[:, :places])
        return x


class Windowed(Reader):
    """Attention to the last eight positions with a penalty for distance (ALiBi); one layer, applied
    repeatedly."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.depth = recipe.depth

    def states(self, x: Tensor) -> Tensor:
        at = torch.arange(x.shape[1])
        apart = at[:, None] - at
        bias = torch.where((apart >= 0) & (apart < 8), -0.3 * apart.float(), torch.tensor(-1e9))
        for _ in range(self.depth):
            q, k, v = self.qkv(self.first(x)).chunk(3, 2)
            x = x + self.out((q @ k.transpose(1, 2) / math.sqrt(q.shape[2]) + bias).softmax(2) @ v)
            x = x + self.down(F.gelu(self.up(self.second(x))))
        return x


class DeepNorm(Reader):
    """Post-norm residual blocks with a scaled-up shortcut and small initial matrices (DeepNet)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width, depth = recipe.width, recipe.depth
        self.enlarge = (2 * depth) ** 0.25
        self.qk = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        self.values = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.up = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        for layer in [*self.values, *self.up, *self.down]:
            nn.init.xavier_normal_(layer.weight, (8 * depth) ** -0.25)

    def states(self, x: Tensor) -> Tensor:
        for i, (qk, values, up, down) in enumerate(zip(self.qk, self.values, self.up, self.down)):
            q, k = qk(x).chunk(2, 2)
            seen = (q @ k.transpose(1, 2) / math.sqrt(q.shape[2])).softmax(2) @ values(x)
            x = self.norms[2 * i](self.enlarge * x + seen)
            x = self.norms[2 * i + 1](self.enlarge * x + down(F.relu(up(x))))
        return x


class Routed(Reader):
    """Only the half of the positions with the highest scores pass through a layer (mixture of depths)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.ask = nn.ModuleList(nn.Linear(width, 1) for _ in range(recipe.depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(recipe.depth))
        self.up = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(recipe.depth))
        self.down = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(recipe.depth))

    def states(self, x: Tensor) -> Tensor:
        for ask, norm, up, down in zip(self.ask, self.norms, self.up, self.down):
            asked = ask(x).squeeze(2)
            best = asked.topk(x.shape[1] // 2, dim=1)
            index = best.indices[..., None].expand(-1, -1, x.shape[2])
            passed = down(F.silu(up(norm(x.gather(1, index))))) * torch.sigmoid(best.values)[..., None]
            x = x.scatter_add(1, index, passed) + 0.3 * x.mean(1, keepdim=True)
        return x


class InducedSet(Reader):
    """Elements of a set attend to six learned points, which attend to the set (set transformer)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.points = nn.ParameterList(0.5 * torch.randn(6, width) for _ in range(recipe.depth))
        self.sides = nn.ModuleList(
            nn.MultiheadAttention(width, 2, batch_first=True) for _ in range(2 * recipe.depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(recipe.depth))

    def states(self, x: Tensor) -> Tensor:
        for i, (points, norm) in enumerate(zip(self.points, self.norms)):
            few = self.sides[2 * i](points.expand(len(x), -1, -1), x, x, need_weights=False)[0]
            x = norm(x + self.sides[2 * i + 1](x, few, few, need_weights=False)[0])
        return x


FIFTH_ATTENTION: dict[str, type[nn.Module]] = {
    "retention": Retention,
    "long_filter": LongFilter,
    "windowed": Windowed,
    "deep_norm": DeepNorm,
    "routed": Routed,
    "induced_set": InducedSet,
}
