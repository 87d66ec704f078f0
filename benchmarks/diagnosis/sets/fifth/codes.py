"""Embeddings, autoencoders and a flow of the fifth set only."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.fourth.dense import dense_blocks
from benchmarks.diagnosis.tasks import SIZES


class Spectrum(nn.Module):
    """An invertible network (Glow): a triangular factorization between couplings. Returns latent and
    determinant."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        size = SIZES[recipe.task][0]
        self.half = size // 2
        self.lower = nn.ParameterList(0.1 * torch.randn(size, size) for _ in range(recipe.depth))
        self.upper = nn.ParameterList(0.1 * torch.randn(size, size) for _ in range(recipe.depth))
        self.logs = nn.ParameterList(torch.zeros(size) for _ in range(recipe.depth))
        self.inner = nn.ModuleList(nn.Linear(self.half, recipe.width) for _ in range(recipe.depth))
        self.outer = nn.ModuleList(
            nn.Linear(recipe.width, 2 * (size - self.half)) for _ in range(recipe.depth)
        )
        for layer in self.outer:
            nn.init.normal_(layer.weight, 0.0, 0.01)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        eye, determinant = torch.eye(x.shape[1]), x.new_zeros(len(x))
        for lower, upper, logs, inner, outer in zip(
            self.lower, self.upper, self.logs, self.inner, self.outer
        ):
            x = x @ (lower.tril(-1) + eye) @ (upper.triu(1) + torch.diag(logs.exp()))
            one, other = x[:, : self.half], x[:, self.half :]
            shift, scale = outer(F.elu(inner(one))).chunk(2, 1)
            scale = torch.tanh(scale)
            x = torch.cat([one, other * scale.exp() + shift], 1)
            determinant = determinant + logs.sum() + scale.sum(1)
        return x, determinant


class Categorical(nn.Module):
    """An autoencoder whose code is eight choices of four, with a falling temperature (Gumbel-softmax)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs = SIZES[recipe.task][0]
        self.down = nn.Sequential(*dense_blocks(recipe, [inputs, recipe.width]), nn.Linear(recipe.width, 32))
        self.up = nn.Sequential(*dense_blocks(recipe, [32, recipe.width]), nn.Linear(recipe.width, inputs))
        self.heat = 1.5

    def forward(self, x: Tensor) -> Tensor:
        logits = self.down(x).view(len(x), 8, 4)
        self.heat = max(0.98 * self.heat, 0.5)
        return self.up(F.gumbel_softmax(logits, self.heat).flatten(1))


class Sparse(nn.Module):
    """An autoencoder that keeps only the eight largest units of its code (top-k)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs = SIZES[recipe.task][0]
        self.encoder = nn.Linear(inputs, recipe.width)
        self.decoder = nn.Linear(recipe.width, inputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        kept = h.topk(8, dim=1)
        return self.decoder(torch.zeros_like(h).scatter(1, kept.indices, F.relu(kept.values)))


class Koopman(nn.Module):
    """An autoencoder with linear dynamics in its code. Returns the reconstructed present and the future."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs = SIZES[recipe.task][0]
        self.down = nn.Sequential(*dense_blocks(recipe, [inputs, recipe.width]), nn.Linear(recipe.width, 8))
        self.future = nn.Linear(8, 8, bias=False)
        self.up = nn.Sequential(*dense_blocks(recipe, [8, recipe.width]), nn.Linear(recipe.width, inputs))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self.down(x)
        return self.up(code), self.up(self.future(code))


class Categories(nn.Module):
    """An embedding for each categorical column, concatenated with the numbers (entity embeddings)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(12, 4) for _ in range(4))
        self.blocks = dense_blocks(recipe, [19] + [recipe.width] * (recipe.depth - 1))
        self.head = nn.Linear(recipe.width, SIZES[recipe.task][1])

    def forward(self, x: Tensor) -> Tensor:
        kinds = x[:, :4].long().clamp(0, 11)
        h = torch.cat([*(e(k) for e, k in zip(self.embeddings, kinds.unbind(1))), x[:, 4:]], 1)
        for block in self.blocks:
            h = block(h)
        return self.head(h)


class Trigrams(nn.Module):
    """The mean of the embeddings of trigrams, through `Block`s (fastText)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.bag = nn.EmbeddingBag(inputs, recipe.width, mode="mean")
        self.blocks = dense_blocks(recipe, [recipe.width] * recipe.depth)
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bag(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Relation(nn.Module):
    """Scores what follows from an entity and a relation by products of their embeddings (DistMult)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        entities = SIZES[recipe.task][0]
        self.entities = nn.Embedding(entities, recipe.width)
        self.relations = nn.Embedding(7, recipe.width * recipe.width)
        nn.init.normal_(self.relations.weight, 0.0, 1 / math.sqrt(recipe.width))

    def forward(self, x: Tensor) -> Tensor:
        head = self.entities(x[:, 0])
        turn = self.relations(x[:, 1]).unflatten(1, (head.shape[1], -1))
        return torch.einsum("bi,bij->bj", head, turn) @ self.entities.weight.T / math.sqrt(head.shape[1])


class Words(nn.Module):
    """Words and contexts with a vector each (skip-gram)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        words = SIZES[recipe.task][0]
        self.words, self.contexts = (nn.Embedding(words, recipe.width) for _ in range(2))
        for embedding in (self.words, self.contexts):
            nn.init.normal_(embedding.weight, 0.0, 0.2)

    def forward(self, words: Tensor, contexts: Tensor) -> Tensor:
        return (self.words(words)[:, None] * self.contexts(contexts)).sum(2)


class Towers(nn.Module):
    """Two networks, one for each half of the features, whose outputs are compared."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.half = SIZES[recipe.task][0] // 2
        self.left = nn.Sequential(*dense_blocks(recipe, [self.half] + [recipe.width] * recipe.depth))
        self.right = nn.Sequential(*dense_blocks(recipe, [self.half] + [recipe.width] * recipe.depth))
        self.heat = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        left = F.normalize(self.left(x[:, : self.half]), dim=1, eps=1e-6)
        right = F.normalize(self.right(x[:, -self.half :]), dim=1, eps=1e-6)
        return left @ right.T * self.heat.exp()


FIFTH_CODES: dict[str, type[nn.Module]] = {
    "spectrum": Spectrum,
    "categorical": Categorical,
    "sparse": Sparse,
    "koopman": Koopman,
    "categories": Categories,
    "trigrams": Trigrams,
    "relation": Relation,
    "words": Words,
    "towers": Towers,
}
