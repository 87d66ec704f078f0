"""Models of sequences of the eighth set only."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.fourth.sequences import Readout

__all__ = ["EIGHTH_SEQUENCES"]


class Mixing(Readout):
    """Pre-norm blocks of a token mixer that `mixer` makes and of a feed-forward part."""

    mean = True

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.mixers = nn.ModuleList(self.mixer(width) for _ in range(recipe.depth))
        self.feed = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(recipe.depth)
        )
        self.norms = nn.ModuleList(self.norm(width) for _ in range(2 * recipe.depth + 1))
        self.places = nn.Parameter(0.1 * torch.randn(48, width))

    @abstractmethod
    def mixer(self, width: int) -> nn.Module:
        """What mixes positions in a block."""

    def norm(self, width: int) -> nn.Module:
        return nn.LayerNorm(width)

    def states(self, x: Tensor) -> Tensor:
        x = x + self.places[: x.shape[1]]
        for i, (mixer, feed) in enumerate(zip(self.mixers, self.feed)):
            x = x + mixer(self.norms[2 * i](x))
            x = x + feed(self.norms[2 * i + 1](x))
        return self.norms[-1](x)


class WithoutAttention(nn.Module):
    """Values weighted by exponentials of their keys, summed over the past (Zhai et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, 2)
        k = k.clamp(-8, 8).exp()
        return self.out(torch.sigmoid(q) * (k * v).cumsum(1) / k.cumsum(1))


class Synthesized(nn.Module):
    """Attention whose weights come from each position alone (Tay et al. 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weights = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 48))
        self.v, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[1]
        scores = self.weights(x)[..., :size]
        scores = scores.masked_fill(torch.ones(size, size).triu(1).bool(), -torch.inf)
        return self.out(scores.softmax(2) @ self.v(x))


class Talking(nn.Module):
    """Attention whose heads exchange scores before and after the softmax (Shazeer et al. 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.before = nn.Parameter(torch.eye(2) + 0.1 * torch.randn(2, 2))
        self.after = nn.Parameter(torch.eye(2) + 0.1 * torch.randn(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        scores = torch.einsum("gh,bhst->bgst", self.before, q @ k.transpose(2, 3) / q.shape[3] ** 0.5)
        scores = scores.masked_fill(torch.ones_like(scores[0, 0]).triu(1).bool(), -torch.inf)
        weights = torch.einsum("gh,bhst->bgst", self.after, scores.softmax(3))
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Averaging(nn.Module):
    """A moving average with a learned rate for each channel, and a gate (after Ma et al. 2022)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.linspace(-2, 2, width))
        self.gate, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        new = torch.sigmoid(self.rate)
        h, rows = torch.zeros_like(x[:, 0]), []
        for row in x.unbind(1):
            h = torch.lerp(h, row, new)
            rows.append(h)
        return self.out(torch.sigmoid(self.gate(x)) * torch.stack(rows, 1))


class GatedFilters(nn.Module):
    """Causal filters over three positions with a gate (Dauphin et al. 2017)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.look = nn.Conv1d(width, 2 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.glu(self.look(F.pad(x.transpose(1, 2), (2, 0))), 1).transpose(1, 2)


class DynamicTanh(nn.Module):
    """tanh(ax) in place of a norm (Zhu et al. 2025)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.full((1,), 0.7))
        self.gain, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * torch.tanh(self.rate * x) + self.bias


class _Mixed(Mixing):
    one: type[nn.Module]

    def mixer(self, width: int) -> nn.Module:
        return self.one(width)


class AttentionFree(_Mixed):
    one = WithoutAttention


class Synthesizer(_Mixed):
    one = Synthesized


class TalkingHeads(_Mixed):
    one = Talking


class MovingAverage(_Mixed):
    one = Averaging


class GatedConvolution(_Mixed):
    one = GatedFilters


class WithoutNorm(TalkingHeads):
    def norm(self, width: int) -> nn.Module:
        return DynamicTanh(width)


class Adapted(TalkingHeads):
    """All but the embedding, the norms, the head and low-rank additions to the keys is frozen (LoRA)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.mixers.requires_grad_(False)
        self.feed.requires_grad_(False)
        self.down = nn.ParameterList(torch.randn(4, width) / width**0.5 for _ in self.mixers)
        self.up = nn.ParameterList(torch.zeros(width, 4) for _ in self.mixers)

    def states(self, x: Tensor) -> Tensor:
        x = x + self.places[: x.shape[1]]
        for i, (mixer, feed) in enumerate(zip(self.mixers, self.feed)):
            h = self.norms[2 * i](x)
            x = x + mixer(h) + F.linear(F.linear(h, self.down[i]), self.up[i])
            x = x + feed(self.norms[2 * i + 1](x))
        return self.norms[-1](x)


class SimpleRecurrence(Readout):
    """Gates that depend on the input alone, so that only a product is recurrent (Lei et al. 2018)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.core = nn.ModuleList(nn.Linear(recipe.width, 3 * recipe.width) for _ in range(recipe.depth))

    def states(self, x: Tensor) -> Tensor:
        for core in self.core:
            new, forget, reset = core(x).chunk(3, 2)
            forget, reset = torch.sigmoid(forget + 1), torch.sigmoid(reset)
            c, rows = torch.zeros_like(x[:, 0]), []
            for i in range(x.shape[1]):
                c = torch.lerp(new[:, i], c, forget[:, i])
                rows.append(c)
            x = reset * torch.stack(rows, 1).tanh() + (1 - reset) * x
        return x


class Multiplicative(Readout):
    """An LSTM whose state is multiplied by what the input makes of it first (Krause et al. 2016)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.of_input, self.of_state = nn.Linear(width, width), nn.Linear(width, width)
        self.core = nn.Linear(2 * width, 4 * width)

    def states(self, x: Tensor) -> Tensor:
        h, c, rows = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
        for row in x.unbind(1):
            m = self.of_input(row) * self.of_state(h)
            i, f, g, o = self.core(torch.cat([row, m], 1)).chunk(4, 1)
            c = torch.sigmoid(f + 1) * c + torch.sigmoid(i) * g.tanh()
            h = torch.sigmoid(o) * c.tanh()
            rows.append(h)
        return torch.stack(rows, 1)


class Stack(Readout):
    """A recurrent network with a soft stack that it pushes to and pops from (Joulin and Mikolov 2015)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.core, self.action = nn.Linear(3 * width, width), nn.Linear(width, 3)
        self.push = nn.Linear(width, width)

    def states(self, x: Tensor) -> Tensor:
        h, rows = torch.zeros_like(x[:, 0]), []
        stack = torch.zeros(len(x), 6, x.shape[2])
        for row in x.unbind(1):
            h = torch.tanh(self.core(torch.cat([row, h, stack[:, 0]], 1)))
            push, pop, keep = self.action(h).softmax(1)[..., None, None].unbind(1)
            pushed = torch.cat([torch.tanh(self.push(h))[:, None], stack[:, :-1]], 1)
            stack = push * pushed + pop * F.pad(stack[:, 1:], (0, 0, 0, 1)) + keep * stack
            rows.append(h)
        return torch.stack(rows, 1)


class Pairwise(Readout):
    """What each pair of places says, summed (Santoro et al. 2017)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.pair = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())

    def states(self, x: Tensor) -> Tensor:
        size = x.shape[1]
        pairs = torch.cat([x[:, :, None].expand(-1, -1, size, -1), x[:, None].expand(-1, size, -1, -1)], 3)
        return self.pair(pairs).mean(2).mean(1, keepdim=True)


class Moments(Readout):
    """Means, maxima and spreads over a set (principal neighborhood aggregation)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.each = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.join = nn.Linear(3 * width, width)

    def states(self, x: Tensor) -> Tensor:
        x = self.each(x)
        found = [x.mean(1), x.amax(1), (x.var(1, correction=0) + 1e-4).sqrt()]
        return F.gelu(self.join(torch.cat(found, 1)))[:, None]


EIGHTH_SEQUENCES: dict[str, type[nn.Module]] = {
    "attention_free": AttentionFree,
    "synthesizer": Synthesizer,
    "talking_heads": TalkingHeads,
    "moving_average": MovingAverage,
    "gated_convolution": GatedConvolution,
    "without_norm": WithoutNorm,
    "adapted_attention": Adapted,
    "simple_recurrence": SimpleRecurrence,
    "multiplicative": Multiplicative,
    "stack": Stack,
    "pairwise": Pairwise,
    "moments_set": Moments,
}
