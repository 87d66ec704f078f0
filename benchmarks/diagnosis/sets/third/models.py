"""Architectures of the third set only: no rule was tuned on any of them."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.models import ACTIVATIONS
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sequences import Attention
from benchmarks.diagnosis.tasks import SIZES, SYMBOLS


class ConvNeXtBlock(nn.Module):
    """A depthwise filter, a norm, two pointwise layers, and a scale for each channel that starts small."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(h)))).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Blocks of an image network after Liu et al. 2022."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.embed = nn.Conv2d(inputs, recipe.width, 2, stride=2)
        self.blocks = nn.ModuleList(ConvNeXtBlock(recipe.width) for _ in range(recipe.depth))
        self.norm = nn.LayerNorm(recipe.width)
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.mean((2, 3))))


class Vision(nn.Module):
    """A transformer over patches with a class token and layer scale (CaiT)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        self.embed = nn.Linear(inputs, width)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.place = nn.Parameter(0.02 * torch.randn(17, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * recipe.depth))
        self.attention = nn.ModuleList(Attention(width, causal=False) for _ in range(recipe.depth))
        self.forwards = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(recipe.depth)
        )
        self.scales = nn.ParameterList(torch.full((width,), 0.1) for _ in range(2 * recipe.depth))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1)
        x = x + self.place[: x.shape[1]]
        parts = [part for pair in zip(self.attention, self.forwards) for part in pair]
        for norm, part, scale in zip(self.norms, parts, self.scales):
            x = x + scale * part(norm(x))
        return self.head(x[:, 0])


class UNet(nn.Module):
    """Convolutions down and back up, with skips across; returns an image."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in ((1, width), (width, 2 * width), (2 * width, 2 * width))
        )
        self.up = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in ((4 * width, width), (2 * width, width))
        )
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        act = F.gelu
        first = act(self.down[0](x))
        second = act(self.down[1](F.avg_pool2d(first, 2)))
        low = act(self.down[2](F.avg_pool2d(second, 2)))
        x = act(self.up[0](torch.cat([F.interpolate(low, scale_factor=2), second], 1)))
        x = act(self.up[1](torch.cat([F.interpolate(x, scale_factor=2), first], 1)))
        return self.head(x)


class Variational(nn.Module):
    """A variational autoencoder: returns the reconstruction, and means and log variances of its code."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        self.encode, self.code = nn.Linear(inputs, width), nn.Linear(width, 12)
        self.decode = nn.Linear(6, width)
        self.activation = ACTIVATIONS[recipe.activation]()
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.code(self.activation(self.encode(x))).chunk(2, -1)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return self.head(self.activation(self.decode(z))), mean, log_variance


class Flow(nn.Module):
    """Affine couplings (RealNVP): returns the latent and the logarithm of the determinant."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, _ = SIZES[recipe.task]
        self.half = inputs // 2
        rest = inputs - self.half
        self.couplings = nn.ModuleList(
            nn.Sequential(nn.Linear(a, recipe.width), nn.ReLU(), nn.Linear(recipe.width, 2 * b))
            for a, b in ((self.half, rest) if i % 2 == 0 else (rest, self.half) for i in range(recipe.depth))
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts, total = [x[:, : self.half], x[:, self.half :]], x.new_zeros(len(x))
        for i, coupling in enumerate(self.couplings):
            shift, scale = coupling(parts[i % 2]).chunk(2, -1)
            scale = torch.tanh(scale)
            parts[1 - i % 2] = parts[1 - i % 2] * scale.exp() + shift
            total = total + scale.sum(1)
        return torch.cat(parts, 1), total


class Kan(nn.Module):
    """A learned function on every edge: Gaussian bumps beside a SiLU (after Kolmogorov and Arnold)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        widths = [inputs] + [recipe.width] * (recipe.depth - 1) + [outputs]
        self.register_buffer("centers", torch.linspace(-2, 2, 6))
        self.bumps = nn.ParameterList(0.1 * torch.randn(b, a, 6) / math.sqrt(a) for a, b in pairwise(widths))
        self.base = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for bumps, base in zip(self.bumps, self.base):
            near = torch.exp(-((x.unsqueeze(-1) - self.centers) / 0.8).square())
            x = base(F.silu(x)) + torch.einsum("nak,bak->nb", near, bumps)
        return x


class SelectiveScan(nn.Module):
    """A state over symbols whose rate of forgetting depends on the input (after Mamba)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.embed = nn.Embedding(SYMBOLS, width)
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(recipe.depth))
        self.inner, self.steps, self.gates, self.outer = (
            nn.ModuleList(nn.Linear(width, width) for _ in range(recipe.depth)) for _ in range(4)
        )
        self.head = nn.Linear(width, SYMBOLS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for norm, inner, steps, gates, outer in zip(
            self.norms, self.inner, self.steps, self.gates, self.outer
        ):
            h = norm(x)
            keep, values = torch.exp(-F.softplus(steps(h))), inner(h)
            state, states = torch.zeros_like(x[:, 0]), []
            for t in range(x.shape[1]):
                state = keep[:, t] * state + (1 - keep[:, t]) * values[:, t]
                states.append(state)
            x = x + outer(torch.stack(states, 1) * F.silu(gates(h)))
        return self.head(x)


class Hyper(nn.Module):
    """A small network makes the weights of another network's layers from a code for each (hypernetwork)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.width = recipe.width
        self.embed = nn.Linear(inputs, recipe.width)
        self.codes = nn.Parameter(torch.randn(recipe.depth, 8))
        self.make = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, recipe.width**2))
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for code in self.codes:
            weight = self.make(code).view(self.width, self.width)
            x = x + torch.tanh(x @ weight.T / math.sqrt(self.width))
        return self.head(x)


class Equilibrium(nn.Module):
    """The fixed point of a layer, with the gradient of its last step (deep equilibrium, phantom gradient)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.embed = nn.Linear(inputs, recipe.width)
        self.inner = nn.Linear(recipe.width, recipe.width, bias=False)
        self.steps = recipe.depth
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        u = self.embed(x)
        z = torch.zeros_like(u)
        with torch.no_grad():
            for _ in range(self.steps):
                z = torch.tanh(self.inner(z) / 2 + u)
        return self.head(torch.tanh(self.inner(z) / 2 + u))


class Ternary(nn.Module):
    """Weights rounded to three values, with a straight-through gradient."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        widths = [inputs] + [recipe.width] * (recipe.depth - 1)
        self.blocks = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.activation = ACTIVATIONS[recipe.activation]()
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.blocks:
            scale = layer.weight.abs().mean().detach()
            rounded = scale * (layer.weight / scale).round().clamp(-1, 1)
            weight = layer.weight + (rounded - layer.weight).detach()
            x = self.activation(F.linear(x, weight, layer.bias))
        return self.head(x)


FURTHER: dict[str, type[nn.Module]] = {
    "convnext": ConvNeXt,
    "vision": Vision,
    "unet": UNet,
    "variational": Variational,
    "flow": Flow,
    "kan": Kan,
    "selective_scan": SelectiveScan,
    "hyper": Hyper,
    "equilibrium": Equilibrium,
    "ternary": Ternary,
}
