"""Models of sequences of the seventh set only."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.fourth.sequences import Readout
from benchmarks.diagnosis.tasks import SIZES, SYMBOLS

__all__ = ["SEVENTH_SEQUENCES"]


class Encoder(Readout):
    """torch's own transformer layers; the norm after the sum with "post_ln"; causal unless "masked"."""

    mean = True

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        first = recipe.extra("post_ln") is None
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 2, 2 * width, recipe.dropout, "gelu", batch_first=True, norm_first=first
            )
            for _ in range(recipe.depth)
        )
        self.norm = nn.LayerNorm(width) if first else nn.Identity()
        self.places = nn.Parameter(0.1 * torch.randn(48, width))
        self.causal = self.every and recipe.extra("training") != "masked"

    def states(self, x: Tensor) -> Tensor:
        size = x.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(size) if self.causal else None
        x = x + self.places[:size]
        for layer in self.layers:
            x = layer(x, src_mask=mask)
        return self.norm(x)


class Attending(Readout):
    """Pre-norm blocks; `mix` is the attention of a block, causal for text."""

    mean = True

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.mixers = nn.ModuleList(self.mixer(width) for _ in range(recipe.depth))
        self.feed = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
            )
            for _ in range(recipe.depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(recipe.depth + 1))
        self.places = nn.Parameter(0.1 * torch.randn(48, width))

    @abstractmethod
    def mixer(self, width: int) -> nn.Module:
        """The parameters of the attention of a block."""

    @abstractmethod
    def mix(self, part: nn.Module, x: Tensor) -> Tensor:
        """What a block's attention adds, [batch, positions, width]."""

    def states(self, x: Tensor) -> Tensor:
        x = x + self.places[: x.shape[1]]
        for norm, part, feed in zip(self.norms, self.mixers, self.feed):
            x = x + self.mix(part, norm(x))
            x = x + feed(x)
        return self.norms[-1](x)


class GroupedQueries(Attending):
    """Four heads of normalized queries share two of keys and values (Ainslie et al. 2023)."""

    def mixer(self, width: int) -> nn.Module:
        size = width // 4
        parts = {"q": nn.Linear(width, width), "kv": nn.Linear(width, width), "out": nn.Linear(width, width)}
        return nn.ModuleDict(parts | {"q_norm": nn.RMSNorm(size), "k_norm": nn.RMSNorm(size)})

    def mix(self, part: nn.Module, x: Tensor) -> Tensor:
        q = part["q_norm"](part["q"](x).unflatten(2, (4, -1))).transpose(1, 2)
        k, v = part["kv"](x).unflatten(2, (2, 2, -1)).permute(2, 0, 3, 1, 4)
        k, v = part["k_norm"](k).repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.every)
        return part["out"](mixed.transpose(1, 2).flatten(2))


class Difference(Attending):
    """The difference of two attentions, the second of them weighted (Ye et al. 2024)."""

    def mixer(self, width: int) -> nn.Module:
        weight = nn.ParameterDict({"second": nn.Parameter(torch.tensor(0.5))})
        return nn.ModuleDict(
            {"qk": nn.Linear(width, 2 * width), "v": nn.Linear(width, width), "out": nn.Linear(width, width)}
            | {"weight": weight}
        )

    def mix(self, part: nn.Module, x: Tensor) -> Tensor:
        q, k = part["qk"](x).unflatten(2, (2, 2, -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
        if self.every:
            scores = scores.masked_fill(torch.ones_like(scores[0, 0]).triu(1).bool(), -torch.inf)
        one, other = scores.softmax(3).unbind(1)
        return part["out"]((one - part["weight"]["second"] * other) @ part["v"](x))


class Receptance(Attending):
    """Sums over the past that fade at a learned rate, and a gate (RWKV)."""

    def mixer(self, width: int) -> nn.Module:
        parts = {"kvr": nn.Linear(width, 3 * width, bias=False), "out": nn.Linear(width, width, bias=False)}
        rates = nn.ParameterDict(
            {
                "fade": nn.Parameter(torch.linspace(-3, 1, width)),
                "shift": nn.Parameter(torch.full((width,), 0.5)),
            }
        )
        return nn.ModuleDict(parts | {"rates": rates})

    def mix(self, part: nn.Module, x: Tensor) -> Tensor:
        shift, fade = part["rates"]["shift"], torch.exp(-part["rates"]["fade"].exp())
        x = torch.lerp(F.pad(x, (0, 0, 1, 0))[:, :-1], x, shift)
        k, v, r = part["kvr"](x).chunk(3, 2)
        k = k.clamp(max=20).exp()
        above = below = torch.zeros_like(x[:, 0])
        found = []
        for i in range(x.shape[1]):
            above, below = fade * above + k[:, i] * v[:, i], fade * below + k[:, i]
            found.append(above / (below + 1e-6))
        return part["out"](torch.sigmoid(r) * torch.stack(found, 1))


class Patched(nn.Module):
    """A series cut into pieces, each of which is a position of a transformer (PatchTST)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.size = 6
        self.stem = nn.Linear(self.size * inputs, recipe.width)
        self.places = nn.Parameter(0.1 * torch.randn(12, recipe.width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(recipe.width, 2, 48, 0.0, batch_first=True, norm_first=True)
            for _ in range(recipe.depth)
        )
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        pieces = x.unfold(1, self.size, self.size).flatten(2)
        h = self.stem(pieces) + self.places[: pieces.shape[1]]
        for layer in self.layers:
            h = layer(h)
        return self.head(h.mean(1))


class SentenceCNN(nn.Module):
    """Filters of three lengths, each pooled by its maximum (Kim 2014)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.embed = nn.Embedding(SYMBOLS, recipe.width)
        self.convs = nn.ModuleList(nn.Conv1d(recipe.width, recipe.width, n) for n in (2, 3, 4))
        self.dropout = nn.Dropout(recipe.dropout)
        self.head = nn.Linear(3 * recipe.width, SIZES[recipe.task][1])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).transpose(1, 2)
        found = torch.cat([F.relu(conv(x)).amax(2) for conv in self.convs], 1)
        return self.head(self.dropout(found))


class Attentive(Readout):
    """A GRU whose states are weighted by a learned query."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.core = nn.GRU(recipe.width, recipe.width, batch_first=True, bidirectional=True)
        self.query = nn.Linear(2 * recipe.width, 1)
        self.join = nn.Linear(2 * recipe.width, recipe.width)

    def states(self, x: Tensor) -> Tensor:
        states = self.core(x)[0]
        share = self.query(states).softmax(1)
        return torch.tanh(self.join((share * states).sum(1, keepdim=True)))


class Peepholes(Readout):
    """An LSTM whose gates see the cell (Gers and Schmidhuber 2000)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.gates = nn.Linear(2 * recipe.width, 4 * recipe.width)
        self.peep = nn.Parameter(0.1 * torch.randn(3, recipe.width))

    def states(self, x: Tensor) -> Tensor:
        h = cell = x.new_zeros(len(x), x.shape[2])
        found = []
        for value in x.unbind(1):
            i, f, o, new = self.gates(torch.cat([value, h], 1)).chunk(4, 1)
            keep = torch.sigmoid(f + 1 + self.peep[1] * cell)
            cell = keep * cell + torch.sigmoid(i + self.peep[0] * cell) * torch.tanh(new)
            h = torch.sigmoid(o + self.peep[2] * cell) * torch.tanh(cell)
            found.append(h)
        return torch.stack(found, 1)


SEVENTH_SEQUENCES: dict[str, type[nn.Module]] = {
    "encoder": Encoder,
    "grouped_queries": GroupedQueries,
    "difference": Difference,
    "receptance": Receptance,
    "patched": Patched,
    "sentence_cnn": SentenceCNN,
    "attentive": Attentive,
    "peepholes": Peepholes,
}
