"""Losses and ways of training of the fourth set only."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.reported.training import OnData
from benchmarks.diagnosis.tasks import Batch


class SmoothedTask(OnData):
    """Cross entropy with smoothed labels."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch[0]).float(), batch[1], label_smoothing=0.1)


class FocalTask(OnData):
    """The focal loss: inputs that are classified well count less (Lin et al. 2017)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        log_p = F.log_softmax(model(batch[0]).float(), 1).gather(1, batch[1][:, None]).squeeze(1)
        return -((1 - log_p.exp()).square() * log_p).mean()


class HingeTask(OnData):
    """Margins between the right class and the others."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.multi_margin_loss(model(batch[0]), batch[1])


class QuantilesTask(OnData):
    """Three quantiles by the pinball loss."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        levels = torch.tensor([0.1, 0.5, 0.9])
        off = batch[1][:, :1] - model(batch[0])[:, :3]
        return torch.maximum(levels * off, (levels - 1) * off).mean()


class EventsTask(OnData):
    """Counts by the likelihood of a Poisson distribution."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.poisson_nll_loss(model(batch[0]), batch[1], full=True)


class SpreadTask(OnData):
    """Mean and variance by the likelihood of a normal distribution."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        mean, log_variance = model(batch[0])[:, :2].chunk(2, 1)
        return F.gaussian_nll_loss(mean, batch[1][:, :1], log_variance.clamp(-6, 6).exp(), full=True)


class MixupTask(OnData):
    """Mixtures of two inputs and of their labels."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        share = float(torch.distributions.Beta(0.4, 0.4).sample())
        out = model(share * x + (1 - share) * x.roll(1, 0))
        return share * F.cross_entropy(out, y) + (1 - share) * F.cross_entropy(out, y.roll(1, 0))


class MarginTask(OnData):
    """The margin loss of capsules."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        length, right = model(batch[0]), F.one_hot(batch[1], 10)
        here, there = F.relu(0.9 - length).square(), F.relu(length - 0.1).square()
        return (right * here + 0.5 * (1 - right) * there).sum(1).mean()


class BitsTask(OnData):
    """Bits by their cross entropy."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(batch[0]).float(), batch[1])


class LevelsTask(OnData):
    """The level of gray of each pixel, one of four."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0]
        return F.cross_entropy(model(x), ((x[:, 0] + 0.9) * 1.5).long().clamp(0, 3))


class SeveralTask(OnData):
    """The class, whether it is odd, and the reconstructed input: a sum of three losses."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        named, odd, again = model(x)
        known = F.binary_cross_entropy_with_logits(odd, (y % 2).float())
        return F.cross_entropy(named, y) + 0.5 * known + 0.5 * F.mse_loss(again, x)


class ExitsTask(OnData):
    """The mean of the heads' losses."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return torch.stack([F.cross_entropy(out, batch[1]) for out in model(batch[0])]).mean()


class WeightsTask(OnData):
    """The likelihood plus the divergence of the weights from their prior."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        far = torch.stack([layer.divergence() for layer in model.layers]).sum()
        return F.cross_entropy(model(batch[0]), batch[1]) + 1e-5 * far


class EquationTask(OnData):
    """A network that solves u'' = -pi^2 sin(pi x), u = 0 at both ends (physics-informed)."""

    def batch(self) -> Batch:
        x = 2 * torch.rand(48, 1) - 1
        return x, math.pi**2 * torch.sin(math.pi * x)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0].clone().requires_grad_()
        (first,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
        ends = model(torch.tensor([[-1.0], [1.0]]))
        return (second + batch[1]).square().mean() / 10 + 10 * ends.square().mean()


class DiffusionTask(OnData):
    """Predicts the noise that was added to an input, whose level the model gets."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0]
        level, noise = torch.rand(len(x), 1), torch.randn_like(x)
        angle = level * math.pi / 2
        return F.mse_loss(model(angle.cos() * x + angle.sin() * noise, level), noise)


class FillTask(OnData):
    """Reconstructs masked patches."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0]
        mask = torch.rand(x.shape[:2]) < 0.5
        return F.mse_loss(model(x, mask)[mask], x[mask])


class TranscriptTask(OnData):
    """Symbols without their positions (CTC)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        log_p = F.log_softmax(model(x), 2).transpose(0, 1)
        lengths = [torch.full((len(x),), n) for n in (x.shape[1], 2)]
        return F.ctc_loss(log_p, y + 1, lengths[0], lengths[1], zero_infinity=True)


class CopyTask(OnData):
    """Copies the first ten symbols."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        y = batch[0][:, :10]
        return F.cross_entropy(model(y, F.pad(y[:, :-1], (1, 0))).flatten(0, 1), y.flatten())


class FollowTask(OnData):
    """Predicts from one noisy view what the slow encoder makes of another."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0]
        model.follow()
        one, other = (x + 0.4 * torch.randn_like(x) for _ in range(2))
        found = F.normalize(model.predictor(model.online(one)), dim=1)
        return 1 - (found * F.normalize(model.slow(other), dim=1)).sum(1).mean()


class RedundancyTask(OnData):
    """Two noisy views agree in each output, and outputs differ from each other (Barlow twins)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0]
        a, b = (model(x + 0.4 * torch.randn_like(x)) for _ in range(2))
        a, b = ((h - h.mean(0)) / (h.std(0) + 1e-3) for h in (a, b))
        together = a.T @ b / len(x)
        agree = (1 - together.diagonal()).square().sum()
        return agree + 0.02 * (together - torch.diag(together.diagonal())).square().sum()


class LessonTask(OnData):
    """Softened outputs of a trained network as targets beside the label (Hinton et al. 2015)."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__(recipe, seed)
        self._teacher = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 10))
        optimizer = torch.optim.Adam(self._teacher.parameters(), 5e-3)
        for _ in range(100):
            x, y = self.batch()
            optimizer.zero_grad()
            F.cross_entropy(self._teacher(x), y).backward()
            optimizer.step()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        with torch.no_grad():
            told = F.softmax(self._teacher(x) / 3, 1)
        out = model(x)
        soft = F.kl_div(F.log_softmax(out / 3, 1), told, reduction="batchmean")
        return 0.3 * F.cross_entropy(out, y) + 2 * soft


class AngleTask(OnData):
    """Classes by the angle to a direction each, the right one with a margin (CosFace)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        out = F.normalize(model(x), dim=1)
        return F.cross_entropy(10 * (out - 0.2 * F.one_hot(y, out.shape[1])), y)


class OrderTask(OnData):
    """Which of two is larger (RankNet)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        score = model(x).squeeze(1)
        larger = (y > y.roll(1, 0)).squeeze(1).float()
        return F.binary_cross_entropy_with_logits(score - score.roll(1, 0), larger)


class SurvivalTask(OnData):
    """Cox's partial likelihood, in the order of the targets."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        risk = model(x).squeeze(1)[y.squeeze(1).argsort(descending=True)]
        return (torch.logcumsumexp(risk, 0) - risk).mean()


class AgreeTask(OnData):
    """Two passes with dropout have to agree (R-Drop)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        one, other = model(x), model(x)
        log_p, log_q = F.log_softmax(one, 1), F.log_softmax(other, 1)
        apart = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(1).mean() / 2
        return (F.cross_entropy(one, y) + F.cross_entropy(other, y)) / 2 + 0.5 * apart


FOURTH_TRAININGS: dict[str, type[OnData]] = {
    "smoothed": SmoothedTask,
    "focal": FocalTask,
    "hinge": HingeTask,
    "quantiles": QuantilesTask,
    "events": EventsTask,
    "spread": SpreadTask,
    "mixup": MixupTask,
    "margin": MarginTask,
    "bits": BitsTask,
    "levels": LevelsTask,
    "several": SeveralTask,
    "exits": ExitsTask,
    "weights": WeightsTask,
    "equation": EquationTask,
    "diffusion": DiffusionTask,
    "fill": FillTask,
    "transcript": TranscriptTask,
    "copy": CopyTask,
    "follow": FollowTask,
    "redundancy": RedundancyTask,
    "lesson": LessonTask,
    "angle": AngleTask,
    "order": OrderTask,
    "survival": SurvivalTask,
    "agree": AgreeTask,
}
