"""Memory, attention and transcription models of the fourth set only."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.fourth.dense import dense_blocks
from benchmarks.diagnosis.tasks import SIZES, SYMBOLS


def encoder(recipe: Recipe, width: int, *, norm_first: bool = True) -> nn.ModuleList:
    return nn.ModuleList(
        nn.TransformerEncoderLayer(
            width, 2, 2 * width, recipe.dropout, F.gelu, batch_first=True, norm_first=norm_first
        )
        for _ in range(recipe.depth)
    )


class Pointer(nn.Module):
    """Scores each position by how well it matches the last state (pointer network)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.core = nn.GRU(SIZES[recipe.task][0], recipe.width, batch_first=True)
        self.keys, self.query = (nn.Linear(recipe.width, recipe.width) for _ in range(2))
        self.score = nn.Linear(recipe.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        states, last = self.core(x)
        return self.score(torch.tanh(self.keys(states) + self.query(last[0])[:, None])).squeeze(2)


class Memory(nn.Module):
    """Looks a key up among pairs of keys and values, in several hops (memory network)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        self.keys, self.values = nn.Embedding(inputs, width), nn.Embedding(inputs, width)
        self.hops = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(recipe.depth))
        self.head = nn.Linear(2 * width, outputs)
        self.detach = recipe.extra("detach") is not None
        for table in (self.keys, self.values):
            nn.init.normal_(table.weight, 0.0, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        keys, values, asked = self.keys(x[:, :6:2]), self.values(x[:, 1:6:2]), self.keys(x[:, 6])
        state, found = asked, torch.zeros_like(asked)
        for hop in self.hops:
            weights = (keys * state[:, None]).sum(2).softmax(1)
            found = found + (weights[:, :, None] * (values.detach() if self.detach else values)).sum(1)
            state = state + hop(found)
        return self.head(torch.cat([state, found], 1))


class Filler(nn.Module):
    """Half of the patches are masked and have to be reconstructed (masked autoencoder)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, width = SIZES[recipe.task][0], recipe.width
        self.embed = nn.Linear(inputs, width)
        self.place = nn.Parameter(0.1 * torch.randn(16, width))
        self.hidden = nn.Parameter(0.1 * torch.randn(width))
        self.blocks = encoder(recipe, width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, inputs)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = torch.where(mask[..., None], self.hidden, self.embed(x)) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Transcriber(nn.Module):
    """Transcribes the columns of an image to symbols and blanks, with filters and an LSTM (CRNN)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.filters = nn.Conv1d(inputs, recipe.width, 3, padding=1)
        self.core = nn.LSTM(recipe.width, recipe.width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.filters(x.transpose(1, 2))).transpose(1, 2)
        return self.head(self.core(x)[0])


class Copier(nn.Module):
    """torch's own transformer with encoder and decoder, over symbols."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.embed = nn.Embedding(SYMBOLS, width)
        self.place = nn.Parameter(0.3 * torch.randn(10, width))
        self.core = nn.Transformer(
            width, 2, recipe.depth, recipe.depth, 2 * width, 0.0, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(width, SYMBOLS)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(before.shape[1])
        out = self.core(self.embed(x) + self.place, self.embed(before) + self.place, tgt_mask=mask)
        return self.head(out)


class Rival(nn.Module):
    """A network, and a critic that predicts from its features where an input is from (adversarial
    domains)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        self.features = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, outputs)
        self.critic = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 1))


class Bag(nn.Module):
    """Elements of a bag weighed by gated attention (Ilse et al. 2018)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.blocks = dense_blocks(recipe, [inputs] + [recipe.width] * recipe.depth)
        self.view, self.gate = nn.Linear(recipe.width, 16), nn.Linear(recipe.width, 16)
        self.tanh, self.sigmoid = nn.Tanh(), nn.Sigmoid()
        self.weigh, self.head = nn.Linear(16, 1), nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        weights = self.weigh(self.tanh(self.view(x)) * self.sigmoid(self.gate(x))).softmax(1)
        return self.head((weights * x).sum(1))


class TableTransformer(nn.Module):
    """A token for each feature, and one for the answer (FT-Transformer)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        self.scale, self.shift = (nn.Parameter(torch.randn(inputs, width) / 4) for _ in range(2))
        self.answer = nn.Parameter(torch.randn(1, width) / 4)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 2, 2 * width, recipe.dropout, batch_first=True, norm_first=True, activation=F.gelu
            )
            for _ in range(recipe.depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x[:, :, None] * self.scale + self.shift
        x = torch.cat([self.answer.expand(len(x), 1, -1), tokens], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


FOURTH_ATTENTION: dict[str, type[nn.Module]] = {
    "pointer": Pointer,
    "memory": Memory,
    "filler": Filler,
    "transcriber": Transcriber,
    "copier": Copier,
    "rival": Rival,
    "bag": Bag,
    "table_transformer": TableTransformer,
}
