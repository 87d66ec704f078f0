"""Losses and ways of training of the sixth set only."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.reported.training import OnData
from benchmarks.diagnosis.tasks import Batch

__all__ = ["SIXTH_TRAININGS"]


class BalancedTask(OnData):
    """The next symbol, and a little for experts that are used unequally."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        out = model(batch[0])
        return F.cross_entropy(out.flatten(0, -2), batch[1].flatten()) + 0.02 * model.unbalance


class SimSiamTask(OnData):
    """One view predicts the code of the other, whose gradient is stopped."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0]
        codes = [model.online(x + 0.4 * torch.randn_like(x)) for _ in range(2)]
        near = [F.cosine_similarity(model.predictor(a), b.detach()).mean() for a, b in (codes, codes[::-1])]
        return 1 - (near[0] + near[1]) / 2


class HingeTurnsTask(OnData):
    """A GAN with the hinge loss, whose parts are trained in turn."""

    step = 0

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        self.step += 1
        real, judge = batch[0], model.discriminator
        fake = model.generator(torch.randn(len(real), 8))
        if self.step % 2:
            return F.relu(1 - judge(real)).mean() + F.relu(1 + judge(fake.detach())).mean()
        still = {k: v.detach() for k, v in judge.named_parameters()}
        return -torch.func.functional_call(judge, still, (fake,)).mean()


class GridTask:
    """Double Q-learning on a grid of five by five with a slow copy; the goal is a corner."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self._random, self._batch = torch.Generator().manual_seed(seed), recipe.batch
        self._slow: nn.Module | None = None

    def batch(self) -> Batch:
        place = torch.randint(0, 5, (self._batch, 2), generator=self._random)
        return place, torch.randint(0, 4, (self._batch,), generator=self._random)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        if self._slow is None:
            self._slow = copy.deepcopy(model)
        place, action = batch
        moves = torch.tensor([[0, 1], [0, -1], [1, 0], [-1, 0]])
        after = (place + moves[action]).clamp(0, 4)
        won = (after == 4).all(1).float()
        with torch.no_grad():
            for slow, fast in zip(self._slow.parameters(), model.parameters()):
                slow.lerp_(fast, 0.05)
            best = model(after / 2 - 1).argmax(1, keepdim=True)
            worth = self._slow(after / 2 - 1).gather(1, best).squeeze(1)
        value = model(place / 2 - 1).gather(1, action[:, None]).squeeze(1)
        return F.smooth_l1_loss(value, won + 0.9 * worth * (1 - won))


class AdvantageTask:
    """Policy and value of a walk along eleven positions, with a reward at either end."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self._random, self._batch = torch.Generator().manual_seed(seed), recipe.batch

    def batch(self) -> Batch:
        place = torch.randint(1, 10, (self._batch, 1), generator=self._random).float()
        return place, place

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        place = batch[0]
        logs, values, rewards = [], [], []
        for _ in range(6):
            out = model(place / 5 - 1)
            policy = torch.distributions.Categorical(logits=out[:, :2])
            action = policy.sample()
            inside = (place > 0) & (place < 10)
            place = torch.where(inside, place + 2 * action[:, None] - 1, place)
            rewards.append((((place == 10).float() + 0.3 * (place == 0)) * inside).squeeze(1))
            logs.append(policy.log_prob(action) * inside.squeeze(1))
            values.append(out[:, 2])
        gains = torch.stack(rewards).flip(0).cumsum(0).flip(0)
        better = gains - torch.stack(values)
        return -(torch.stack(logs) * better.detach()).mean() + 0.5 * better.square().mean()


class StraightTask(OnData):
    """Predicts the direction of the straight line from noise to an input (rectified flow)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, noise = batch[0], torch.randn_like(batch[0])
        at = torch.rand(len(x), 1)
        return F.mse_loss(model((1 - at) * noise + at * x, at), x - noise)


class ListTask(OnData):
    """An order of the whole batch by the likelihood of its best (ListNet)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        told = F.softmax(2 * batch[1].squeeze(1), 0)
        return -(told * F.log_softmax(model(batch[0]).squeeze(1), 0)).sum()


class NoiseToNoiseTask(OnData):
    """Predicts one noisy image from another one of the same object."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0]
        return F.mse_loss(model(x + 0.4 * torch.randn_like(x)), x + 0.4 * torch.randn_like(x))


class SmallCodeTask(OnData):
    """Reconstruction with a penalty on the gradient of the code (contractive autoencoder).

    "weight:W" sets the weight of the penalty.
    """

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__(recipe, seed)
        self.weight = float(recipe.extra("weight") or 0.005)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0].clone().requires_grad_()
        out = model(x)
        (slope,) = torch.autograd.grad((out * torch.randn_like(out)).sum(), x, create_graph=True)
        return F.mse_loss(out, batch[0]) + self.weight * slope.square().sum(1).mean()


class LogCoshTask(OnData):
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        off = model(batch[0]) - batch[1]
        return (off + F.softplus(-2 * off)).mean() - torch.log(torch.tensor(2.0))


class UnequalTask(OnData):
    """A rare class counts ten times."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        keep = (y != 0) | (torch.rand(len(y)) < 0.15)
        out = model(x[keep])
        weights = torch.where(torch.arange(out.shape[1]) == 0, 10.0, 1.0)
        return F.cross_entropy(out, y[keep], weight=weights)


class PolyTask(OnData):
    """Cross entropy and how far the right class is from certain (PolyLoss)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        out = model(batch[0])
        sure = out.softmax(1).gather(1, batch[1][:, None]).squeeze(1)
        return F.cross_entropy(out, batch[1]) + (1 - sure).mean()


class NaiveTask(OnData):
    """Cross entropy as the logarithm of a softmax, which loses precision."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        chances = model(batch[0]).softmax(1)
        return -(F.one_hot(batch[1], chances.shape[1]) * chances.log()).sum(1).mean()


class DistanceTask(OnData):
    """The distance of two views beside the label; "same_view" leaves out their noise."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__(recipe, seed)
        self.noise = 0.1 if recipe.extra("same_view") is None else 0.0

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        out = model(x)
        apart = (out - model(x + self.noise * torch.randn_like(x))).square().sum(1).sqrt()
        return F.cross_entropy(out, y) + 0.1 * apart.mean()


class TemperatureTask(OnData):
    """Matches two noisy views within the batch by a sharp softmax in both directions."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0]
        a, b = (F.normalize(model(x + 0.3 * torch.randn_like(x)), dim=1) for _ in range(2))
        scores, own = a @ b.T / 0.3, torch.arange(len(x))
        return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


SIXTH_TRAININGS: dict[str, type] = {
    "balanced": BalancedTask,
    "simsiam": SimSiamTask,
    "hinge_turns": HingeTurnsTask,
    "grid": GridTask,
    "advantage": AdvantageTask,
    "straight": StraightTask,
    "listed": ListTask,
    "noise_to_noise": NoiseToNoiseTask,
    "small_code": SmallCodeTask,
    "log_cosh": LogCoshTask,
    "unequal": UnequalTask,
    "poly": PolyTask,
    "naive": NaiveTask,
    "distance": DistanceTask,
    "both_directions": TemperatureTask,
}
