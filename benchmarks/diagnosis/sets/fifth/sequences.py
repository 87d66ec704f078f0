"""Models of sequences, sets and trees of the fifth set only."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis import tasks
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.fourth.dense import dense_blocks
from benchmarks.diagnosis.tasks import SIZES

#: Tasks whose inputs are symbols, and tasks with an output at every position.
SYMBOLIC = (*tasks.SYMBOLIC, "tokens", "chains", "brackets", "majority")
EACH_PLACE = (*tasks.EVERY, "tokens", "brackets", "series", "lorenz", "sensors", "functions")


class Reader(nn.Module):
    """Embeds the input, runs `states`, and reads out every position or their mean."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        symbols = recipe.task in SYMBOLIC
        self.embed = nn.Embedding(inputs, recipe.width) if symbols else nn.Linear(inputs, recipe.width)
        self.head = nn.Linear(recipe.width, outputs)
        self.every = recipe.task in EACH_PLACE

    @abstractmethod
    def states(self, x: Tensor) -> Tensor:
        """The state at each position, [batch, positions, width]."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.states(self.embed(x))
        return self.head(h if self.every else h.mean(1))


class Quasi(Reader):
    """Gates from filters over two positions, then a gated sum over time without weights (QRNN)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.filters = nn.ModuleList(
            nn.Conv1d(recipe.width, 3 * recipe.width, 2) for _ in range(recipe.depth)
        )

    def states(self, x: Tensor) -> Tensor:
        for layer in self.filters:
            z, forget, out = layer(F.pad(x.transpose(1, 2), (1, 0))).transpose(1, 2).chunk(3, 2)
            z, forget, out = torch.tanh(z), torch.sigmoid(forget), torch.sigmoid(out)
            state, states = torch.zeros_like(x[:, 0]), []
            for t in range(x.shape[1]):
                state = torch.lerp(z[:, t], state, forget[:, t])
                states.append(state)
            x = x + out * torch.stack(states, 1)
        return x


class Rotating(Reader):
    """A recurrent matrix that rotates and never stretches: the exponential of an antisymmetric matrix."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.raw = nn.Parameter(torch.randn(recipe.width, recipe.width) / math.sqrt(recipe.width))
        self.enter = nn.Linear(recipe.width, recipe.width)
        self.shift = nn.Parameter(torch.zeros(recipe.width))

    def states(self, x: Tensor) -> Tensor:
        turn = torch.matrix_exp(self.raw - self.raw.T)
        state, states = torch.zeros_like(x[:, 0]), []
        for drive in self.enter(x).unbind(1):
            state = state @ turn + drive
            size = state.abs() + 1e-3
            state = state / size * F.relu(size + self.shift)
            states.append(state)
        return torch.stack(states, 1)


class Grams(Reader):
    """Positions mixed with their neighbors on both sides, through `Block`s."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.blocks = dense_blocks(recipe, [3 * recipe.width] + [recipe.width] * recipe.depth)

    def states(self, x: Tensor) -> Tensor:
        around = F.pad(x, (0, 0, 1, 1))
        x = torch.cat([around[:, :-2], x, around[:, 2:]], 2)
        for block in self.blocks:
            x = block(x)
        return x


class Smoother(Reader):
    """A Kalman filter with a learned gain, which corrects predictions by observations."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.move = nn.Linear(recipe.width, recipe.width)
        self.gain = nn.Linear(2 * recipe.width, recipe.width)

    def states(self, x: Tensor) -> Tensor:
        state, states = torch.zeros_like(x[:, 0]), []
        for seen in x.unbind(1):
            expected = state + 0.3 * torch.tanh(self.move(state))
            trust = torch.sigmoid(self.gain(torch.cat([seen, expected], 1)))
            state = expected + trust * (seen - expected)
            states.append(state)
        return torch.stack(states, 1)


class Tree(nn.Module):
    """Leaves and operations of a tree, joined bottom-up by one gated cell (recursive network)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.embed = nn.Embedding(inputs, recipe.width)
        self.join = nn.Linear(3 * recipe.width, recipe.width)
        self.gate = nn.Linear(3 * recipe.width, 2 * recipe.width)
        self.head = nn.Linear(recipe.width, outputs)

    def _cell(self, left: Tensor, right: Tensor, op: Tensor) -> Tensor:
        both = torch.cat([left, right, op], -1)
        keep = torch.sigmoid(self.gate(both)).chunk(2, -1)
        return torch.tanh(self.join(both)) + keep[0] * left + keep[1] * right

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        pairs = self._cell(h[:, 0:4:2], h[:, 1:4:2], h[:, 4:6])
        return self.head(self._cell(pairs[:, 0], pairs[:, 1], h[:, 6]))


class HiddenChain(nn.Module):
    """A hidden Markov model, given by the logits of its start, transitions and symbols."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        states, symbols = recipe.width, SIZES[recipe.task][1]
        self.start = nn.Parameter(torch.randn(states))
        self.moves = nn.Parameter(torch.randn(states, states))
        self.symbols = nn.Parameter(torch.randn(states, symbols))

    def forward(self, x: Tensor) -> Tensor:
        moves, seen = self.moves.log_softmax(1), self.symbols.log_softmax(1).T[x]
        alpha = self.start.log_softmax(0) + seen[:, 0]
        for t in range(1, x.shape[1]):
            alpha = torch.logsumexp(alpha[:, :, None] + moves, 1) + seen[:, t]
        return alpha.logsumexp(1) / x.shape[1]


class Process(nn.Module):
    """Values of a function at some positions, from those at others (conditional neural process)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.blocks = dense_blocks(recipe, [2] + [width] * recipe.depth)
        self.answer = dense_blocks(recipe, [width + 1] + [width] * recipe.depth)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        known = x[:, :8]
        for block in self.blocks:
            known = block(known)
        h = torch.cat([known.mean(1, keepdim=True).expand(-1, x.shape[1], -1), x[..., :1]], 2)
        for block in self.answer:
            h = block(h)
        mean, raw = self.head(h).chunk(2, 2)
        return mean, 0.1 + 0.9 * F.softplus(raw)


class Tagger(Reader):
    """A conditional random field: returns scores of the classes at each position, and has scores of
    transitions."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.rnn = nn.GRU(recipe.width, recipe.width // 2, batch_first=True, bidirectional=True)
        self.moves = nn.Parameter(0.1 * torch.randn(SIZES[recipe.task][1], SIZES[recipe.task][1]))

    def states(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


FIFTH_SEQUENCES: dict[str, type[nn.Module]] = {
    "quasi": Quasi,
    "rotating": Rotating,
    "grams": Grams,
    "smoother": Smoother,
    "tree": Tree,
    "hidden_chain": HiddenChain,
    "process": Process,
    "tagger": Tagger,
}
