"""Models of sequences of the fourth set only."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.models import Block
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.tasks import EVERY, SIZES, SYMBOLIC, SYMBOLS


def embedding(recipe: Recipe) -> nn.Module:
    """The embedding of symbols, or a linear layer for vectors."""
    if recipe.task in SYMBOLIC:
        return nn.Embedding(SYMBOLS, recipe.width)
    return nn.Linear(SIZES[recipe.task][0], recipe.width)


class Readout(nn.Module):
    """Embeds the input, runs `states`, and reads out every position (text, series), the last one or the
    mean."""

    mean = False

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.embed = embedding(recipe)
        self.head = nn.Linear(recipe.width, SIZES[recipe.task][1])
        self.every = recipe.task in (*EVERY, "series")

    @abstractmethod
    def states(self, x: Tensor) -> Tensor:
        """The state at each position, [batch, positions, width]."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.states(self.embed(x))
        return self.head(h if self.every else h.mean(1) if self.mean else h[:, -1])


class SpatialGating(Readout):
    """Positions are mixed by a gate of one learned matrix (gMLP)."""

    mean = True

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width, places = recipe.width, {"rows": 8, "patches": 16, "origin": 24, "signals": 48}[recipe.task]
        self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(recipe.depth))
        self.down = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(recipe.depth))
        self.mix = nn.ModuleList(nn.Linear(places, places) for _ in range(recipe.depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(recipe.depth))
        self.inner = nn.ModuleList(nn.LayerNorm(2 * width) for _ in range(recipe.depth))
        for layer in self.mix:
            nn.init.normal_(layer.weight, 0.0, 1e-3)
            nn.init.ones_(layer.bias)

    def states(self, x: Tensor) -> Tensor:
        for up, down, mix, norm, inner in zip(self.up, self.down, self.mix, self.norms, self.inner):
            a, b = F.gelu(up(norm(x))).chunk(2, -1)
            x = x + down(a * mix(inner(b).transpose(1, 2)).transpose(1, 2))
        return x


class FourierMixing(Readout):
    """Positions and channels are mixed by a Fourier transform without weights (FNet)."""

    mean = True

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * recipe.depth))
        self.up = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(recipe.depth))
        self.down = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(recipe.depth))

    def states(self, x: Tensor) -> Tensor:
        for i, (up, down) in enumerate(zip(self.up, self.down)):
            x = self.norms[2 * i](x + torch.fft.fft2(x).real / x[0].numel() ** 0.5)
            x = self.norms[2 * i + 1](x + down(F.gelu(up(x))))
        return x


class LinearAttention(Readout):
    """Attention as running sums of positive features of keys and values (Katharopoulos et al. 2020)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(recipe.depth))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(recipe.depth))
        self.feed = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(recipe.depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * recipe.depth))

    def states(self, x: Tensor) -> Tensor:
        for i, (qkv, out, feed) in enumerate(zip(self.qkv, self.out, self.feed)):
            q, k, v = qkv(self.norms[2 * i](x)).chunk(3, -1)
            q, k = F.elu(q) + 1, F.elu(k) + 1
            weights = (q @ k.transpose(1, 2)).tril()
            x = x + out(weights @ v / (weights.sum(-1, keepdim=True) + 1e-6))
            x = x + feed(self.norms[2 * i + 1](x))
        return x


class Parallel(Readout):
    """Attention and feed-forward in parallel, rotary positions, normalized queries, one key for all heads."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.shared = recipe.extra("shared") is not None
        kinds = 1 if self.shared else recipe.depth
        self.repeats = recipe.depth // kinds
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(kinds))
        self.into = nn.ModuleList(nn.Linear(width, 2 * width + 4 * width, bias=False) for _ in range(kinds))
        self.out = nn.ModuleList(nn.Linear(3 * width, width, bias=False) for _ in range(kinds))

    def states(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        for norm, into, out in [*zip(self.norms, self.into, self.out)] * self.repeats:
            q, kv, gate, value = into(norm(x)).split([width, width, 2 * width, 2 * width], -1)
            q = self._turn(F.normalize(q.unflatten(-1, (2, -1)).transpose(1, 2), dim=-1))
            k, v = (half[:, None] for half in kv.chunk(2, -1))
            k = self._turn(F.normalize(k, dim=-1)) * 4
            mixed = F.scaled_dot_product_attention(q, k.expand_as(q), v.expand_as(q), is_causal=True)
            x = x + out(torch.cat([mixed.transpose(1, 2).flatten(2), F.silu(gate) * value], -1))
        return x

    def _turn(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        rate = 100.0 ** (-torch.arange(half) / half)
        angle = torch.arange(x.shape[-2])[:, None] * rate
        a, b = x[..., :half], x[..., half : 2 * half]
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


class Independent(Readout):
    """Each unit has one weight for its own state (IndRNN); layers in between."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.layers = nn.ModuleList(nn.Linear(recipe.width, recipe.width) for _ in range(recipe.depth))
        self.keep = nn.ParameterList(torch.rand(recipe.width) for _ in range(recipe.depth))

    def states(self, x: Tensor) -> Tensor:
        for layer, keep in zip(self.layers, self.keep):
            h, rows = torch.zeros_like(x[:, 0]), []
            for row in layer(x).unbind(1):
                h = F.relu(row + keep * h)
                rows.append(h)
            x = torch.stack(rows, 1)
        return x


class Reservoir(Readout):
    """A random recurrent network that is not trained, and a readout that is (echo state network)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.embed.requires_grad_(False)
        self.core = nn.Linear(width, width, bias=False).requires_grad_(False)
        nn.init.orthogonal_(self.core.weight, 0.9)

    def states(self, x: Tensor) -> Tensor:
        h, rows = torch.zeros_like(x[:, 0]), []
        for row in x.unbind(1):
            h = 0.5 * h + 0.5 * torch.tanh(self.core(h) + row)
            rows.append(h)
        return torch.stack(rows, 1)


class Diagonal(Readout):
    """A bank of learned decays over the past as a convolution (diagonal state space), GLU in between."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.decay = nn.ParameterList(torch.linspace(-3, 1.5, width) for _ in range(recipe.depth))
        self.mix = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(recipe.depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(recipe.depth))

    def states(self, x: Tensor) -> Tensor:
        age = torch.arange(x.shape[1])
        age = (age[:, None] - age).to(x.dtype)
        for decay, mix, norm in zip(self.decay, self.mix, self.norms):
            rate = torch.exp(decay)
            kernel = torch.exp(-rate[:, None, None] * age.clamp_min(0)) * (age >= 0) * rate[:, None, None]
            x = x + F.glu(mix(F.gelu(torch.einsum("cts,bsc->btc", kernel, norm(x)))), -1)
        return x


class Liquid(Readout):
    """States that relax at a learned pace, by steps of Euler (liquid time constants)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.core = nn.Linear(2 * recipe.width, recipe.width)
        self.pace = nn.Parameter(torch.zeros(recipe.width))

    def states(self, x: Tensor) -> Tensor:
        h, rows = torch.zeros_like(x[:, 0]), []
        for row in x.unbind(1):
            for _ in range(2):
                h = h + torch.sigmoid(self.pace) * (torch.tanh(self.core(torch.cat([row, h], 1))) - h)
            rows.append(h)
        return torch.stack(rows, 1)


class NormedLSTM(Readout):
    """A hand-written LSTM with peepholes and a norm on its gates."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.core = nn.Linear(2 * width, 4 * width, bias=False)
        self.norm, self.peep = nn.LayerNorm(4 * width), nn.Parameter(torch.zeros(2, width))

    def states(self, x: Tensor) -> Tensor:
        h, c, rows = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
        for row in x.unbind(1):
            i, f, g, o = self.norm(self.core(torch.cat([row, h], 1))).chunk(4, 1)
            c = torch.sigmoid(f + 1 + self.peep[0] * c) * c + torch.sigmoid(i + self.peep[1] * c) * g.tanh()
            h = torch.sigmoid(o) * c.tanh()
            rows.append(h)
        return torch.stack(rows, 1)


class Temporal(Readout):
    """Dilated causal filters over two positions in `Block`s (TCN), residual if the recipe says so."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.blocks = nn.ModuleList(
            Block(recipe, nn.Linear(2 * width, width), width, False) for _ in range(recipe.depth)
        )
        self.residual = recipe.residual

    def states(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            before = F.pad(x, (0, 0, 2 ** (i % 4), 0))[:, : x.shape[1]]
            h = block(torch.cat([before, x], -1))
            x = x + h if self.residual else h
        return x


FOURTH_SEQUENCES: dict[str, type[nn.Module]] = {
    "spatial_gating": SpatialGating,
    "fourier_mixing": FourierMixing,
    "linear_attention": LinearAttention,
    "parallel": Parallel,
    "independent": Independent,
    "reservoir": Reservoir,
    "diagonal": Diagonal,
    "liquid": Liquid,
    "normed_lstm": NormedLSTM,
    "temporal": Temporal,
}
