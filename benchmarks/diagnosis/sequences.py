"""Models of sequences: recurrent ones, transformers, and lookup tables."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.tasks import EVERY, LENGTH, SIZES, SYMBOLIC, SYMBOLS

RECURRENT = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class Recurrent(nn.Module):
    """RNN, LSTM or GRU over symbols or vectors; a head on every state (text) or on the last."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.embed = nn.Embedding(SYMBOLS, recipe.width) if recipe.task in SYMBOLIC else None
        kind = RECURRENT[recipe.arch]
        self.core = kind(
            recipe.width if self.embed else inputs, recipe.width, num_layers=recipe.depth, batch_first=True
        )
        self.head = nn.Linear(recipe.width, outputs)
        self.every = recipe.task in EVERY
        gain = recipe.extra("states")
        if recipe.arch == "rnn":
            nn.init.orthogonal_(self.core.weight_hh_l0, float(gain or 1))
            self.core.nonlinearity, self.core.mode = ("relu", "RNN_RELU") if gain else ("tanh", "RNN_TANH")

    def forward(self, x: Tensor) -> Tensor:
        states = self.core(self.embed(x) if self.embed else x)[0]
        return self.head(states if self.every else states[:, -1])


class Attention(nn.Module):
    """Self-attention with two heads, causal for text."""

    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Attention and a feed-forward part; the norm before (pre-LN) or after the residual sum (post-LN)."""

    def __init__(self, recipe: Recipe, causal: bool) -> None:
        super().__init__()
        width = recipe.width
        self.attention = Attention(width, causal)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.after = recipe.extra("post_ln") is not None

    def forward(self, x: Tensor) -> Tensor:
        if self.after:
            x = self.norm1(x + self.attention(x))
            return self.norm2(x + self.down(F.gelu(self.up(x))))
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Maps symbols or vectors to a symbol for each position (text) or a class, with tied weights on
    request."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        symbols = recipe.task in SYMBOLIC
        self.embed = nn.Embedding(SYMBOLS, recipe.width) if symbols else nn.Linear(inputs, recipe.width)
        self.place = nn.Parameter(0.02 * torch.randn(LENGTH, recipe.width))
        self.every = recipe.task in EVERY
        self.blocks = nn.ModuleList(TransformerBlock(recipe, self.every) for _ in range(recipe.depth))
        self.norm = nn.LayerNorm(recipe.width)
        self.head = nn.Linear(recipe.width, outputs, bias=False)
        if symbols:
            nn.init.normal_(self.embed.weight, 0.0, 0.02 if recipe.extra("tied") is not None else 0.5)
        if recipe.extra("tied") is not None:
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.place[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x if self.every else x.mean(1))


class Mixer(nn.Module):
    """An MLP-mixer over the rows of an image."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        self.stem = nn.Linear(inputs, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * recipe.depth))
        self.tokens = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(recipe.depth)
        )
        self.channels = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(recipe.depth)
        )
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, (tokens, channels) in enumerate(zip(self.tokens, self.channels)):
            x = x + tokens(self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
            x = x + channels(self.norms[2 * i + 1](x))
        return self.head(x.mean(1))


class TextCNN(nn.Module):
    """Convolutions along a text, pooled by the maximum."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        outputs = SIZES[recipe.task][1]
        self.embed = nn.Embedding(SYMBOLS, recipe.width)
        self.convs = nn.ModuleList(
            nn.Conv1d(recipe.width, recipe.width, 3, padding=1) for _ in range(recipe.depth)
        )
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).transpose(1, 2)
        for conv in self.convs:
            x = torch.relu(conv(x))
        return self.head(x.amax(2))


class Neighbors(nn.Module):
    """A symbol from the mean of those around it (CBOW)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.embed = nn.Embedding(SYMBOLS, recipe.width)
        self.head = nn.Linear(recipe.width, SYMBOLS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x).mean(1))


class Factors(nn.Module):
    """Matrix factorization with biases."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(60, recipe.width), nn.Embedding(40, recipe.width)
        self.user_bias, self.item_bias = nn.Embedding(60, 1), nn.Embedding(40, 1)
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, 0.0, 0.3)
        for table in (self.user_bias, self.item_bias):
            nn.init.zeros_(table.weight)

    def forward(self, x: Tensor) -> Tensor:
        user, item = x[:, 0], x[:, 1]
        product = (self.users(user) * self.items(item)).sum(1, keepdim=True)
        return product + self.user_bias(user) + self.item_bias(item)
