"""Models of sequences of the sixth set only."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sequences import Transformer, TransformerBlock
from benchmarks.diagnosis.sets.fourth.sequences import Readout
from benchmarks.diagnosis.tasks import SIZES, SYMBOLS

__all__ = ["SIXTH_SEQUENCES"]


class SmallGPT(nn.Module):
    """A decoder with GPT-2's initialization: normal weights of 0.02, smaller ones into the residual sum."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.embed = nn.Embedding(SYMBOLS, recipe.width)
        self.place = nn.Embedding(24, recipe.width)
        self.blocks = nn.ModuleList(TransformerBlock(recipe, True) for _ in range(recipe.depth))
        self.norm = nn.LayerNorm(recipe.width)
        self.head = nn.Linear(recipe.width, SYMBOLS, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                back = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / math.sqrt(2 * recipe.depth) if back else 0.02)
        if recipe.extra("tied") is not None:
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.place.weight[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Slopes(Readout):
    """Causal attention with a penalty for distance in place of positions (ALiBi)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2 * recipe.depth))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(recipe.depth))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(recipe.depth))
        self.feed = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(recipe.depth)
        )

    def states(self, x: Tensor) -> Tensor:
        at = torch.arange(x.shape[1])
        far = (at[None] - at[:, None]).to(x.dtype)
        bias = torch.stack([0.5 * far, 0.1 * far]).masked_fill(far > 0, -torch.inf)
        for i, (qkv, out, feed) in enumerate(zip(self.qkv, self.out, self.feed)):
            q, k, v = qkv(self.norms[2 * i](x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            x = x + out(mixed.transpose(1, 2).flatten(2))
            x = x + feed(self.norms[2 * i + 1](x))
        return x


class Switch(Readout):
    """A transformer block whose feed-forward part is one of several experts for each position."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixer = nn.MultiheadAttention(width, 2, batch_first=True)
        self.router = nn.Linear(width, recipe.depth, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
            for _ in range(recipe.depth)
        )
        self.unbalance = torch.zeros(())

    def states(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        x = x + self.mixer(h, h, h, need_weights=False, attn_mask=mask)[0]
        h = self.norm2(x).flatten(0, 1)
        gates = self.router(h).softmax(1)
        best = gates.argmax(1)
        share = F.one_hot(best, len(self.experts)).float().mean(0)
        self.unbalance = len(self.experts) * (share * gates.mean(0)).sum()
        out = torch.zeros_like(h)
        for i, expert in enumerate(self.experts):
            chosen = (best == i).nonzero().squeeze(1)
            if len(chosen):
                out = out.index_add(0, chosen, gates[chosen, i, None] * expert(h[chosen]))
        return x + out.view_as(x)


class Universal(Readout):
    """One transformer block, applied repeatedly, with an embedding of the round."""

    mean = True

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.block = TransformerBlock(recipe, self.every)
        self.rounds = nn.Parameter(0.1 * torch.randn(recipe.depth, recipe.width))
        self.places = nn.Parameter(0.1 * torch.randn(24, recipe.width))

    def states(self, x: Tensor) -> Tensor:
        x = x + self.places[: x.shape[1]]
        for number in self.rounds:
            x = self.block(x + number)
        return x


class Slots(Readout):
    """A few slots compete for the positions, round by round (Locatello et al. 2020)."""

    mean = True

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.start = nn.Parameter(0.5 * torch.randn(3, width))
        self.places = nn.Parameter(0.3 * torch.randn(24, width))
        self.norm, self.norm_slots = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.cell = nn.GRUCell(width, width)

    def states(self, x: Tensor) -> Tensor:
        x = self.norm(x + self.places[: x.shape[1]])
        keys, values = self.key(x), self.value(x)
        slots = self.start.expand(len(x), -1, -1)
        for _ in range(2):
            scores = self.query(self.norm_slots(slots)) @ keys.transpose(1, 2) / math.sqrt(x.shape[2])
            share = scores.softmax(1) + 1e-6
            found = share / share.sum(2, keepdim=True) @ values
            slots = self.cell(found.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
        return slots


class Clockwork(Readout):
    """Units in groups that change at every step, every second one, every fourth one (Koutnik et al. 2014)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.recur = nn.Linear(recipe.width, recipe.width)
        self.enter = nn.Linear(recipe.width, recipe.width, bias=False)
        nn.init.orthogonal_(self.recur.weight)
        groups = torch.arange(recipe.width) * 3 // recipe.width
        self.register_buffer("periods", 2**groups)

    def states(self, x: Tensor) -> Tensor:
        h, found = x.new_zeros(len(x), x.shape[2]), []
        for step, value in enumerate(x.unbind(1)):
            new = torch.tanh(self.recur(h) + self.enter(value))
            h = torch.where(step % self.periods == 0, new, h)
            found.append(h)
        return torch.stack(found, 1)


class Antisymmetric(Readout):
    """A recurrent network whose matrix has no growing direction (Chang et al. 2019)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.recur = nn.Linear(recipe.width, recipe.width)
        self.gate = nn.Linear(2 * recipe.width, recipe.width)

    def states(self, x: Tensor) -> Tensor:
        h, found = x.new_zeros(len(x), x.shape[2]), []
        weight = self.recur.weight - self.recur.weight.T - 0.02 * torch.eye(x.shape[2])
        for value in x.unbind(1):
            open_ = torch.sigmoid(self.gate(torch.cat([value, h], 1)))
            h = h + 0.3 * open_ * torch.tanh(F.linear(h, weight, self.recur.bias) + value)
            found.append(h)
        return torch.stack(found, 1)


class ConvLSTM(nn.Module):
    """An LSTM over the rows of an image, whose states are rows updated by filters."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.gates = nn.Conv1d(1 + recipe.width, 4 * recipe.width, 3, padding=1)
        self.head = nn.Linear(8 * recipe.width, SIZES[recipe.task][1])
        self.width = recipe.width

    def forward(self, x: Tensor) -> Tensor:
        h = cell = x.new_zeros(len(x), self.width, x.shape[2])
        for row in x.unbind(1):
            i, f, o, g = self.gates(torch.cat([row[:, None], h], 1)).chunk(4, 1)
            cell = torch.sigmoid(f + 1) * cell + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(cell)
        return self.head(h.flatten(1))


class Hierarchy(Readout):
    """A GRU over pieces of four positions, and one over its outputs."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.inner, self.outer = (nn.GRU(recipe.width, recipe.width, batch_first=True) for _ in range(2))

    def states(self, x: Tensor) -> Tensor:
        pieces = self.inner(x.unflatten(1, (-1, 4)).flatten(0, 1))[1][0]
        return self.outer(pieces.view(len(x), -1, x.shape[2]))[0]


class Zoneout(Readout):
    """An LSTM that randomly keeps some of its states unchanged (Krueger et al. 2016)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.cell = nn.LSTMCell(recipe.width, recipe.width)

    def states(self, x: Tensor) -> Tensor:
        h = cell = x.new_zeros(len(x), x.shape[2])
        found = []
        for value in x.unbind(1):
            new_h, new_cell = self.cell(value, (h, cell))
            stay = torch.rand_like(h) < 0.1
            h, cell = torch.where(stay, h, new_h), torch.where(stay, cell, new_cell)
            found.append(h)
        return torch.stack(found, 1)


class ResidualLSTM(Readout):
    """Layers of LSTMs with a sum around each."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.layers = nn.ModuleList(
            nn.LSTM(recipe.width, recipe.width, batch_first=True) for _ in range(recipe.depth)
        )

    def states(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)[0]
        return x


class Prompted(Transformer):
    """A frozen transformer with trained prompts in front and a trained head."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.requires_grad_(False)
        self.head.requires_grad_(True)
        self.prompts = nn.Parameter(0.3 * torch.randn(4, recipe.width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.place[: x.shape[1]]
        x = torch.cat([self.prompts.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


SIXTH_SEQUENCES: dict[str, type[nn.Module]] = {
    "small_gpt": SmallGPT,
    "slopes": Slopes,
    "switch": Switch,
    "universal": Universal,
    "slots": Slots,
    "clockwork": Clockwork,
    "antisymmetric": Antisymmetric,
    "conv_lstm": ConvLSTM,
    "hierarchy": Hierarchy,
    "zoneout": Zoneout,
    "residual_lstm": ResidualLSTM,
    "prompted": Prompted,
}
