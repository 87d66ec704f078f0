"""Ways of training of the reported set only; see `special` for those of the tuning set."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.tasks import Batch, make_task


class OnData:
    def __init__(self, recipe: Recipe, seed: int) -> None:
        self._data = make_task(recipe, seed)

    def batch(self) -> Batch:
        return self._data.batch()


class ScoreTask(OnData):
    """Predicts the noise in an input (denoising score matching)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0]
        level = torch.rand(len(x), 1)
        noise = torch.randn_like(x)
        return F.mse_loss(model((1 - level).sqrt() * x + level.sqrt() * noise), noise)


class ActorCriticTask(OnData):
    """The last output estimates the reward, the others choose an action; the reward is 1 for the class."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        out = model(x)
        policy, value = torch.distributions.Categorical(logits=out[:, :-1]), out[:, -1]
        action = policy.sample()
        reward = (action == y).float()
        actor = -(policy.log_prob(action) * (reward - value.detach())).mean()
        return actor + 0.5 * F.mse_loss(value, reward) - 0.02 * policy.entropy().mean()


class PrototypeTask(OnData):
    """Half of a batch gives the mean of each class, to which the other half is compared."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        h, half = model(x), len(x) // 2
        classes = y[:half].unique()
        means = torch.stack([h[:half][y[:half] == c].mean(0) for c in classes])
        known = (y[half:, None] == classes).any(1)
        target = (y[half:, None] == classes).float().argmax(1)
        return F.cross_entropy(-torch.cdist(h[half:], means)[known], target[known])


class ConsistencyTask(OnData):
    """A quarter of the batch has labels; on the rest, two noisy views have to agree."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        quarter = len(x) // 4
        one, other = (model(x + 0.2 * torch.randn_like(x)) for _ in range(2))
        supervised = F.cross_entropy(one[:quarter], y[:quarter])
        return supervised + F.mse_loss(one.softmax(1), other.softmax(1).detach())


class MixtureTask(OnData):
    """Three normal distributions for each input, fitted by their likelihood (a mixture density network)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        weight, mean, scale = model(x).chunk(3, 1)
        z = (y[:, :1] - mean) / scale.exp()
        logs = F.log_softmax(weight, 1) - scale - z.square() / 2 - math.log(2 * math.pi) / 2
        return -torch.logsumexp(logs, 1).mean()


UNSEEN_TRAININGS = {
    "score": ScoreTask,
    "actor_critic": ActorCriticTask,
    "prototypes": PrototypeTask,
    "consistency": ConsistencyTask,
    "mixture": MixtureTask,
}
