"""Training with opponents, rewards and inner loops, of the fourth set only."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.reported.training import OnData
from benchmarks.diagnosis.tasks import Batch


class TurnsTask(OnData):
    """A least squares GAN whose parts are trained in turn; the idle part has no gradient."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__(recipe, seed)
        self._step = 0

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        self._step += 1
        real, judge = batch[0], model.discriminator
        fake = model.generator(torch.randn(len(real), 8))
        if self._step % 2:
            return (judge(real) - 1).square().mean() + judge(fake.detach()).square().mean()
        still = {k: v.detach() for k, v in judge.named_parameters()}
        return (torch.func.functional_call(judge, still, (fake,)) - 1).square().mean()


class CriticTask(OnData):
    """A Wasserstein GAN with a gradient penalty, both parts at once."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        real, critic = batch[0], model.discriminator
        fake = model.generator(torch.randn(len(real), 8))
        between = (real + torch.rand(len(real), 1) * (fake.detach() - real)).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        penalty = (slope.square().sum(1).add(1e-8).sqrt() - 1).square().mean()
        still = {k: v.detach() for k, v in critic.named_parameters()}
        fooled = torch.func.functional_call(critic, still, (fake,)).mean()
        return critic(fake.detach()).mean() - critic(real).mean() + 5 * penalty - fooled


class Reversed(torch.autograd.Function):
    """The identity, with the sign of the gradient turned."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        return -0.3 * grad


class DomainsTask(OnData):
    """Features by which a critic cannot tell shifted inputs from others (Ganin et al. 2016)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        moved = 0.8 * x + 0.5
        features, others = model.features(x), model.features(moved)
        told = model.critic(Reversed.apply(torch.cat([features, others]))).squeeze(1)
        where = torch.cat([torch.zeros(len(x)), torch.ones(len(x))])
        return F.cross_entropy(model.head(features), y) + F.binary_cross_entropy_with_logits(told, where)


class ProximalTask(OnData):
    """Proximal policy optimization on a walk of twelve positions, with the reward at its right end.

    New walks are made every four steps; the ratio to the old policy is clipped.
    """

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__(recipe, seed)
        self._places = torch.randn(12, 64, generator=torch.Generator().manual_seed(31))
        self._step = 0
        self._walks: Any = None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        if self._step % 4 == 0:
            self._walks = self._walk(model)
        self._step += 1
        places, actions, old, returns = self._walks
        out = model(self._places[places])
        value, log_p = out[:, -1], F.log_softmax(out[:, :2], 1)
        ratio = (log_p.gather(1, actions[:, None]).squeeze(1) - old).exp()
        gain = returns - value.detach()
        gain = (gain - gain.mean()) / (gain.std() + 1e-5)
        won = torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
        entropy = -(log_p.exp() * log_p).sum(1).mean()
        return 0.5 * F.mse_loss(value, returns) - won - 0.01 * entropy

    @torch.no_grad()
    def _walk(self, model: nn.Module) -> tuple[Tensor, ...]:
        place, seen, rewards = torch.full((12,), 5), [], []
        for _ in range(12):
            policy = torch.distributions.Categorical(logits=model(self._places[place])[:, :2])
            action = policy.sample()
            seen.append((place, action, policy.log_prob(action)))
            place = (place + 2 * action - 1).clamp(0, 11)
            rewards.append((place == 11).float())
        total, returns = torch.zeros(12), []
        for reward in reversed(rewards):
            total = reward + 0.8 * total
            returns.append(total)
        places, actions, logs = (torch.cat(x) for x in zip(*seen))
        return places, actions, logs, torch.cat(returns[::-1])


class WavesTask(OnData):
    """A start from which one step learns any wave (MAML, of second order)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        named = dict(model.named_parameters())
        losses = []
        for _ in range(4):
            x = 4 * torch.rand(24, 1) - 2
            y = (0.5 + torch.rand(())) * torch.sin(2 * x + math.pi * torch.rand(()))
            inner = F.mse_loss(torch.func.functional_call(model, named, (x[:12],)), y[:12])
            slopes = torch.autograd.grad(inner, list(named.values()), create_graph=True)
            adapted = {n: p - 0.1 * g for (n, p), g in zip(named.items(), slopes)}
            losses.append(F.mse_loss(torch.func.functional_call(model, adapted, (x[12:],)), y[12:]))
        return torch.stack(losses).mean()


class AttackedTask(OnData):
    """Inputs are moved up the gradient of the loss first (FGSM)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(x), batch[1]), x)
        return F.cross_entropy(model(x.detach() + 0.1 * slope.sign()), batch[1])


FOURTH_GAMES: dict[str, type[OnData]] = {
    "attacked": AttackedTask,
    "turns": TurnsTask,
    "critic": CriticTask,
    "domains": DomainsTask,
    "proximal": ProximalTask,
    "waves": WavesTask,
}
