"""Architectures of the reported set only: no rule was tuned on any of them."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.models import ACTIVATIONS, make_norm
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.tasks import SIZES, SYMBOLS


class Inception(nn.Module):
    """Parallel convolutions of three sizes, concatenated."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width - recipe.width % 3
        widths = [inputs] + [width] * recipe.depth
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(a, b // 3, size, padding=size // 2) for size in (1, 3, 5))
            for a, b in pairwise(widths)
        )
        self.norms = nn.ModuleList(make_norm(recipe, width, dense=False) for _ in range(recipe.depth))
        self.activation = ACTIVATIONS[recipe.activation]()
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for i, (branches, norm) in enumerate(zip(self.blocks, self.norms)):
            x = self.activation(norm(torch.cat([branch(x) for branch in branches], 1)))
            x = F.max_pool2d(x, 2) if i == 0 else x
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Each layer sees the outputs of all before it (DenseNet)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        self.blocks = nn.ModuleList(nn.Linear(inputs + i * width, width) for i in range(recipe.depth))
        self.activation = ACTIVATIONS[recipe.activation]()
        self.head = nn.Linear(inputs + recipe.depth * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.blocks:
            x = torch.cat([x, self.activation(layer(x))], 1)
        return self.head(x)


class GatedBlock(nn.Module):
    """Attention and SwiGLU after RMSNorm, without biases, as LLaMA's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate, self.up = (nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    """A decoder of gated blocks over symbols."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.embed = nn.Embedding(SYMBOLS, recipe.width)
        self.blocks = nn.ModuleList(GatedBlock(recipe.width) for _ in range(recipe.depth))
        self.norm = nn.RMSNorm(recipe.width)
        self.head = nn.Linear(recipe.width, SYMBOLS, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, 0.0, 0.08)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Perceiver(nn.Module):
    """Learned queries attend to the rows of an image repeatedly."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        self.queries = nn.Parameter(torch.randn(4, width) / math.sqrt(width))
        self.embed = nn.Linear(inputs, width)
        self.cross = nn.ModuleList(
            nn.MultiheadAttention(width, 2, batch_first=True) for _ in range(recipe.depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(recipe.depth))
        self.place = nn.Parameter(0.1 * torch.randn(8, width))
        self.head = nn.Linear(4 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.embed(x) + self.place[: x.shape[1]]
        state = self.queries.expand(len(x), -1, -1)
        for cross, norm in zip(self.cross, self.norms):
            state = state + cross(norm(state), rows, rows, need_weights=False)[0]
        return self.head(state.flatten(1))


class WaveNet(nn.Module):
    """Dilated causal convolutions, tanh gated by a sigmoid, their sum through the head."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.embed = nn.Embedding(SYMBOLS, width)
        self.filters, self.gates = (
            nn.ModuleList(nn.Conv1d(width, width, 2, dilation=2**i) for i in range(recipe.depth))
            for _ in range(2)
        )
        self.mix = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(recipe.depth))
        self.head = nn.Linear(width, SYMBOLS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).transpose(1, 2)
        total = torch.zeros_like(x)
        for i, (filter_, gate, mix) in enumerate(zip(self.filters, self.gates, self.mix)):
            padded = F.pad(x, (2**i, 0))
            h = mix(torch.tanh(filter_(padded)) * torch.sigmoid(gate(padded)))
            x, total = x + h, total + h
        return self.head(F.relu(total).transpose(1, 2))


class MinimalGated(nn.Module):
    """A gated recurrent cell of two Linear layers, written by hand."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.forget = nn.Linear(inputs + recipe.width, recipe.width)
        self.candidate = nn.Linear(inputs + recipe.width, recipe.width)
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.head.in_features)
        for row in x.unbind(1):
            f = torch.sigmoid(self.forget(torch.cat([row, h], 1)))
            h = (1 - f) * h + f * torch.tanh(self.candidate(torch.cat([row, f * h], 1)))
        return self.head(h)


class DeepSets(nn.Module):
    """The mean of the features of all elements."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        self.embed = nn.Linear(inputs + 1, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(recipe.depth))
        self.activation = ACTIVATIONS[recipe.activation]()
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        place = torch.linspace(-1, 1, x.shape[1]).view(1, -1, 1).expand(len(x), -1, 1)
        h = self.activation(self.embed(torch.cat([x, place], 2)))
        for i, layer in enumerate(self.blocks):
            h = h.mean(1) if i == len(self.blocks) - 1 else h
            h = self.activation(layer(h))
        return self.head(h)


class SimilarityGraph(nn.Module):
    """Message passing over a batch, whose inputs are neighbors by their distance."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        widths = [inputs] + [recipe.width] * recipe.depth
        self.messages, self.selves = (
            nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths)) for _ in range(2)
        )
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        near = torch.softmax(-torch.cdist(x, x).detach(), 1)
        for message, own in zip(self.messages, self.selves):
            x = F.relu(near @ message(x) + own(x))
        return self.head(x)


class Ordinary(nn.Module):
    """A differential equation in steps of Euler: one block, applied repeatedly."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.embed = nn.Linear(inputs, recipe.width)
        self.inner, self.outer = (nn.Linear(recipe.width, recipe.width) for _ in range(2))
        self.steps = recipe.depth
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for _ in range(self.steps):
            h = h + self.outer(torch.tanh(self.inner(h))) / self.steps
        return self.head(h)


class Radial(nn.Module):
    """Gaussian bumps around learned centers, and a head."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.centers = nn.Parameter(torch.randn(recipe.width, inputs))
        self.widths = nn.Parameter(torch.zeros(recipe.width))
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        near = torch.exp(-torch.cdist(x, self.centers).square() / x.shape[1] * self.widths.exp())
        return self.head(near)


class Machine(nn.Module):
    """A factorization machine beside a small network (DeepFM)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.factors = nn.Parameter(0.1 * torch.randn(inputs, recipe.width))
        self.deep = nn.Sequential(nn.Linear(inputs, recipe.width), nn.ReLU())
        self.head = nn.Linear(2 * recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        pairs = (x @ self.factors).square() - x.square() @ self.factors.square()
        return self.head(torch.cat([pairs / 2, self.deep(x)], 1))


class Quantized(nn.Module):
    """An autoencoder whose code is the nearest of learned vectors, with a straight-through gradient."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        self.encode = nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, 8))
        self.book = nn.Parameter(torch.randn(16, 8))
        self.decode = nn.Sequential(nn.Linear(8, width), nn.GELU())
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        code = self.encode(x)
        nearest = self.book[torch.cdist(code, self.book).argmin(1)]
        return self.head(self.decode(nearest + code - code.detach()))


class BothWays(nn.Module):
    """A bidirectional LSTM whose states are averaged by attention."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        symbols = inputs == SYMBOLS
        self.embed = nn.Embedding(SYMBOLS, recipe.width) if symbols else nn.Linear(inputs, recipe.width)
        self.core = nn.LSTM(recipe.width, recipe.width, batch_first=True, bidirectional=True)
        self.score = nn.Linear(2 * recipe.width, 1)
        self.head = nn.Linear(2 * recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        states = self.core(self.embed(x))[0]
        return self.head((self.score(states).softmax(1) * states).sum(1))


class Preactivated(nn.Module):
    """Residual convolutions with the normalization first (ResNet v2), their last filters starting at zero."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        self.embed = nn.Conv2d(inputs, width, 3, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(2, width) for _ in range(recipe.depth))
        self.first, self.second = (
            nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(recipe.depth))
            for _ in range(2)
        )
        for layer in self.second:
            nn.init.zeros_(layer.weight)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for norm, first, second in zip(self.norms, self.first, self.second):
            x = x + second(F.relu(first(F.relu(norm(x)))))
        return self.head(x.mean((2, 3)))


UNSEEN: dict[str, type[nn.Module]] = {
    "inception": Inception,
    "dense": Dense,
    "llama": Llama,
    "perceiver": Perceiver,
    "wavenet": WaveNet,
    "minimal_gated": MinimalGated,
    "deep_sets": DeepSets,
    "similarity_graph": SimilarityGraph,
    "ordinary": Ordinary,
    "radial": Radial,
    "machine": Machine,
    "quantized": Quantized,
    "both_ways": BothWays,
    "preactivated": Preactivated,
}
