"""Models whose parts take turns or are frozen, and training without a supervised loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.models import MLP
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.tasks import SIZES, Batch, make_task


class Experts(nn.Module):
    """A mixture of experts, each input routed to one of them; some get nothing in a small batch."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.stem = nn.Linear(inputs, recipe.width)
        self.router = nn.Linear(recipe.width, recipe.depth)
        self.experts = nn.ModuleList(
            nn.Sequential(
                nn.Linear(recipe.width, recipe.width), nn.ReLU(), nn.Linear(recipe.width, recipe.width)
            )
            for _ in range(recipe.depth)
        )
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        gates = self.router(x).softmax(-1)
        best = gates.argmax(-1)
        out = x
        for i, expert in enumerate(self.experts):
            chosen = (best == i).nonzero().squeeze(1)
            if len(chosen):
                out = out.index_add(0, chosen, gates[chosen, i, None] * expert(x[chosen]))
        return self.head(out)


class Heads(nn.Module):
    """One trunk, heads that are trained in turn."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.trunk = nn.Sequential(
            nn.Linear(inputs, recipe.width), nn.ReLU(), nn.Linear(recipe.width, recipe.width), nn.ReLU()
        )
        self.heads = nn.ModuleList(nn.Linear(recipe.width, outputs) for _ in range(3))
        self.turn = 0

    def forward(self, x: Tensor) -> Tensor:
        self.turn += 1
        return self.heads[self.turn % 3](self.trunk(x))


class Adapted(nn.Module):
    """A frozen MLP with low-rank adapters whose second factor starts at zero (LoRA)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.base = MLP(recipe).requires_grad_(False)
        layers = [block.layer for block in self.base.blocks] + [self.base.head]
        self.down = nn.ParameterList(torch.randn(4, layer.in_features) / 4 for layer in layers)
        up = 0.0
        self.up = nn.ParameterList(torch.full((layer.out_features, 4), up) for layer in layers)
        if recipe.extra("zero_down") is not None:
            for factor in self.down:
                nn.init.zeros_(factor)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.base.blocks):
            x = block.activation(block.layer(x) + F.linear(F.linear(x, self.down[i]), self.up[i]))
        return self.base.head(x) + F.linear(F.linear(x, self.down[-1]), self.up[-1])


class Frozen(MLP):
    """An MLP whose first half is frozen."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        for block in self.blocks[: recipe.depth // 2]:
            block.requires_grad_(False)


class GAN(nn.Module):
    """A generator of 8 × 8 digits and a discriminator."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.generator = nn.Sequential(
            nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 64)
        )
        self.discriminator = nn.Sequential(nn.Linear(64, width), nn.LeakyReLU(0.2), nn.Linear(width, 1))


class GANTask:
    """Both parts at once: the generator's gradient goes through the discriminator, which gets none of it."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self._real = make_task(recipe, seed)

    def batch(self) -> Batch:
        x = self._real.batch()[0]
        return x, torch.randn(len(x), 8)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        real, noise = batch
        fake = model.generator(noise)
        discriminator = model.discriminator
        told = F.softplus(-discriminator(real)).mean() + F.softplus(discriminator(fake.detach())).mean()
        frozen = {k: v.detach() for k, v in discriminator.named_parameters()}
        fooled = F.softplus(-torch.func.functional_call(discriminator, frozen, (fake,))).mean()
        return told + fooled


class BanditTask:
    """REINFORCE: the action is a digit's class, the reward 1 or 0, a running mean the baseline."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self._data = make_task(recipe, seed)
        self._mean = 0.0

    def batch(self) -> Batch:
        return self._data.batch()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        policy = torch.distributions.Categorical(logits=model(x))
        action = policy.sample()
        reward = (action == y).float()
        advantage, self._mean = reward - self._mean, 0.9 * self._mean + 0.1 * float(reward.mean())
        return -(policy.log_prob(action) * advantage).mean() - 0.01 * policy.entropy().mean()


class ValueTask:
    """Temporal differences: the state's value from the next one's, on a random walk with rare rewards."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self._random = torch.Generator().manual_seed(seed)
        self._batch = recipe.batch
        self._table = torch.randn(20, SIZES[recipe.task][0], generator=torch.Generator().manual_seed(3))

    def batch(self) -> Batch:
        state = torch.randint(0, 20, (self._batch,), generator=self._random)
        move = torch.randint(0, 2, (self._batch,), generator=self._random) * 2 - 1
        return state, (state + move).clamp(0, 19)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        now, after = batch
        reward = (after == 19).float() * 5
        with torch.no_grad():
            target = reward + 0.9 * model(self._table[after])[:, 0] * (after != 19)
        return F.smooth_l1_loss(model(self._table[now])[:, 0], target)


class ContrastiveTask:
    """Matches two noisy views of a digit within the batch (NT-Xent, temperature 0.2)."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self._data = make_task(recipe, seed)

    def batch(self) -> Batch:
        x = self._data.batch()[0]
        return x + 0.3 * torch.randn_like(x), x + 0.3 * torch.randn_like(x)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        a, b = (F.normalize(model(x), dim=-1) for x in batch)
        return F.cross_entropy(a @ b.T / 0.2, torch.arange(len(a)))


class TripletTask(ContrastiveTask):
    """A view of the same digit has to be nearer than another digit, by a margin."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        a, b = (model(x) for x in batch)
        return F.triplet_margin_loss(a, b, b.roll(1, 0))


TRAININGS = {
    "gan": GANTask,
    "bandit": BanditTask,
    "value": ValueTask,
    "contrastive": ContrastiveTask,
    "triplet": TripletTask,
}
