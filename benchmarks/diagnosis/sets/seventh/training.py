"""Losses and ways of training of the seventh set only."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.reported.training import OnData
from benchmarks.diagnosis.tasks import Batch

__all__ = ["SEVENTH_TRAININGS"]


def _still(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


class PreferenceTask(OnData):
    """A real continuation is preferred to a shuffled one, by more than the first model prefers it (DPO)."""

    first: nn.Module | None = None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        if self.first is None:
            self.first = copy.deepcopy(model).requires_grad_(False)
        x, y = batch
        worse = x[:, torch.randperm(x.shape[1])]
        better = self._likelihood(model, x, y) - self._likelihood(model, worse, worse.roll(-1, 1))
        with torch.no_grad():
            before = self._likelihood(self.first, x, y)
            before = before - self._likelihood(self.first, worse, worse.roll(-1, 1))
        return -F.logsigmoid(0.2 * (better - before)).mean()

    def _likelihood(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return model(x).log_softmax(2).gather(2, y[..., None]).sum((1, 2))


class RewardTask(OnData):
    """The better of two is to get a higher score (Bradley and Terry)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        score, truth = model(batch[0]).squeeze(1), batch[1].squeeze(1)
        sign = (truth - truth.roll(1)).sign()
        return F.softplus(-sign * (score - score.roll(1))).mean()


class AdaptingTask(OnData):
    """Waves of random heights: one step on ten points, and the loss on ten others after it (MAML)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        total = []
        for _ in range(4):
            height, phase = 0.5 + 1.5 * torch.rand(()), 3.1 * torch.rand(())
            x = 4 * torch.rand(20, 1) - 2
            y = height * torch.sin(2 * x + phase)
            first = F.mse_loss(model(x[:10]), y[:10])
            params = dict(model.named_parameters())
            grads = torch.autograd.grad(first, list(params.values()), create_graph=True)
            moved = {name: p - 0.05 * g for (name, p), g in zip(params.items(), grads)}
            total.append(F.mse_loss(functional_call(model, moved, (x[10:],)), y[10:]))
        return torch.stack(total).mean()


class JointTask(OnData):
    """Predicts the slow model's code of a whole input from an input with holes (I-JEPA)."""

    slow: nn.Module | None = None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        if self.slow is None:
            self.slow = copy.deepcopy(model.online).requires_grad_(False)
        x = batch[0]
        with torch.no_grad():
            for old, new in zip(self.slow.parameters(), model.online.parameters()):
                old.lerp_(new, 0.02)
            target = F.layer_norm(self.slow(x), (self.slow(x).shape[1],))
        return F.smooth_l1_loss(model.predictor(model.online(x * (torch.rand_like(x) < 0.7))), target)


class SquaresTask(OnData):
    """A GAN whose judge tells real from fake by squares (Mao et al. 2017)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        real, judge = batch[0], model.discriminator
        fake = model.generator(torch.randn(len(real), 8))
        told = (judge(real) - 1).square().mean() + judge(fake.detach()).square().mean()
        fooled = (functional_call(judge, _still(judge), (fake,)) - 1).square().mean()
        return (told + fooled) / 2


class SlicedTask(OnData):
    """Reconstruction, and a code whose projections are sorted like normal numbers (sliced Wasserstein)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0]
        code = model.encode(x)
        lines = F.normalize(torch.randn(code.shape[1], 16), dim=0)
        apart = (code @ lines).sort(0).values - (torch.randn_like(code) @ lines).sort(0).values
        return F.mse_loss(model.decode(code), x) + 0.3 * apart.square().mean()


class SparseCodeTask(OnData):
    """Reconstruction and the absolute values of the code; "weight:W" is what these count."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__(recipe, seed)
        self.weight = float(recipe.extra("weight") or 0.02)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        code = F.softplus(model.encode(batch[0]))
        return F.mse_loss(model.decode(code), batch[0]) + self.weight * code.abs().mean()


class GroupsTask(OnData):
    """Reconstruction from a code that is near one of ten centers, which are means of the batch's codes."""

    centers: Tensor | None = None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        code = model.encode(batch[0])
        if self.centers is None:
            self.centers = code[:10].detach().clone()
        near = torch.cdist(code.detach(), self.centers).argmin(1)
        for i in near.unique():
            self.centers[i] = 0.9 * self.centers[i] + 0.1 * code[near == i].detach().mean(0)
        return F.mse_loss(model.decode(code), batch[0]) + 0.1 * F.mse_loss(code, self.centers[near])


class LadderTask(OnData):
    """The evidence bound of a code and of the code's code; "weight:W" is what the codes' part counts."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__(recipe, seed)
        self.weight = float(recipe.extra("weight") or 0.1)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0]
        mean, log = model.first(x).chunk(2, 1)
        code = mean + (0.5 * log).exp() * torch.randn_like(mean)
        mean2, log2 = model.second(code).chunk(2, 1)
        above = mean2 + (0.5 * log2).exp() * torch.randn_like(mean2)
        told, told_log = model.prior(above).chunk(2, 1)
        first = 0.5 * (told_log - log + (log.exp() + (mean - told).square()) / told_log.exp() - 1).sum(1)
        second = 0.5 * (log2.exp() + mean2.square() - 1 - log2).sum(1)
        return F.mse_loss(model.decode(code), x) + self.weight * (first + second).mean() / 8


class ProcessTask(OnData):
    """Minus the marginal likelihood of a Gaussian process on learned features."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        codes = model.features(batch[0]) / model.log_length.exp()
        covariance = torch.exp(-0.5 * torch.cdist(codes, codes).square())
        covariance = covariance + (model.log_noise.exp() + 1e-3) * torch.eye(len(codes))
        root = torch.linalg.cholesky(covariance)
        y = batch[1]
        half = torch.linalg.solve_triangular(root, y, upper=False)
        return (0.5 * half.square().sum() + root.diagonal().log().sum()) / len(y) + 0.92


class MaskedTask(OnData):
    """A sixth of the symbols is hidden and predicted from both sides (BERT)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0]
        hidden = torch.rand(x.shape) < 0.16
        hidden[:, 0] = True
        out = model(torch.where(hidden, 63, x))
        return F.cross_entropy(out[hidden], x[hidden])


class HeavyTask(OnData):
    """Student's t in place of a normal distribution."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return 2.0 * torch.log1p((model(batch[0]) - batch[1]).square() / 3).mean()


class GammaTask(OnData):
    """Positive targets: a gamma distribution whose logarithm of the mean is the output."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        out = model(batch[0])
        return (out + (batch[1] - out).exp()).mean()


class PerceptualTask(OnData):
    """Reconstruction as fixed random filters see it, and a little as it is."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__(recipe, seed)
        self.filters = torch.randn(12, 1, 3, 3, generator=torch.Generator().manual_seed(720)) / 3

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0]
        out = model(x)
        seen = [F.relu(F.conv2d(v.view(-1, 1, 8, 8), self.filters)) for v in (out, x)]
        return F.mse_loss(*seen) + 0.2 * F.mse_loss(out, x)


class BalanceTask:
    """REINFORCE with a value on a pole that falls if it is pushed the wrong way, eight steps at a time."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self._random, self._batch = torch.Generator().manual_seed(seed), recipe.batch

    def batch(self) -> Batch:
        start = 0.4 * torch.randn(self._batch, 4, generator=self._random)
        return start, start

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        state, logs, values, rewards = batch[0], [], [], []
        for _ in range(8):
            out = model(state)
            policy = torch.distributions.Categorical(logits=out[:, :2])
            action = policy.sample()
            place, speed, angle, turn = state.unbind(1)
            push = action.float() * 2 - 1
            turn = turn + 0.2 * (torch.sin(angle) - push * torch.cos(angle))
            speed = speed + 0.2 * push
            state = torch.stack([place + 0.1 * speed, speed, angle + 0.2 * turn, turn], 1)
            rewards.append((state[:, 2].abs() < 0.5).float())
            logs.append(policy.log_prob(action))
            values.append(out[:, 2])
        gains = torch.stack(rewards).flip(0).cumsum(0).flip(0) / 4
        better = gains - torch.stack(values)
        return -(torch.stack(logs) * better.detach()).mean() + 0.5 * better.square().mean()


class SharesTask:
    """The distribution of the value on a corridor of ten places, in eleven shares (Bellemare et al. 2017)."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self._random, self._batch = torch.Generator().manual_seed(seed), recipe.batch
        self._table = torch.randn(10, 3, generator=torch.Generator().manual_seed(721))
        self._slow: nn.Module | None = None

    def batch(self) -> Batch:
        place = torch.randint(0, 9, (self._batch,), generator=self._random)
        return place, place

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        if self._slow is None:
            self._slow = copy.deepcopy(model)
        place, grid = batch[0], torch.linspace(0, 1, 3)
        after = (place + torch.where(torch.rand(len(place)) < 0.7, 1, -1)).clamp(0, 9)
        with torch.no_grad():
            for slow, fast in zip(self._slow.parameters(), model.parameters()):
                slow.lerp_(fast, 0.05)
            share = self._slow(self._table[after]).softmax(1)
            worth = torch.where(after[:, None] == 9, torch.ones(()), 0.9 * grid)
            weight = (1 - (worth[..., None] - grid).abs() * 2).clamp_min(0)
            target = torch.einsum("bi,bij->bj", share, weight)
        return -(target * model(self._table[place]).log_softmax(1)).sum(1).mean()


class ActorTask:
    """An actor follows the slope of a critic that learns what an action is worth (deterministic policy)."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self._random, self._batch = torch.Generator().manual_seed(seed), recipe.batch

    def batch(self) -> Batch:
        state = 2 * torch.rand(self._batch, 2, generator=self._random) - 1
        return state, state

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        state = batch[0]
        action = torch.tanh(model.actor(state))
        tried = (action + 0.3 * torch.randn_like(action)).detach()
        reward = 1 - (tried - torch.sin(math.pi * state)).square().sum(1)
        value = model.critic(torch.cat([state, tried], 1)).squeeze(1)
        guess = functional_call(model.critic, _still(model.critic), (torch.cat([state, action], 1),))
        return F.mse_loss(value, reward) - 0.3 * guess.mean()


SEVENTH_TRAININGS: dict[str, type] = {
    "preference": PreferenceTask,
    "reward": RewardTask,
    "adapting": AdaptingTask,
    "joint": JointTask,
    "squares": SquaresTask,
    "sliced": SlicedTask,
    "sparse_code": SparseCodeTask,
    "groups": GroupsTask,
    "ladder": LadderTask,
    "marginal": ProcessTask,
    "masked": MaskedTask,
    "heavy": HeavyTask,
    "gamma": GammaTask,
    "perceptual": PerceptualTask,
    "balance": BalanceTask,
    "shares": SharesTask,
    "follows": ActorTask,
}
