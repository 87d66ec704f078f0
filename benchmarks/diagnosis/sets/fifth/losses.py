"""Losses of the fifth set only."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.sets.reported.training import OnData
from benchmarks.diagnosis.tasks import Batch

__all__ = ["FIFTH_LOSSES"]


class GradesTask(OnData):
    """Ordered classes as a series of thresholds (CORAL)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        above = (y[:, None] > torch.arange(4)).float()
        return F.binary_cross_entropy_with_logits(model(x)[:, :4].float(), above)


class OverdispersedTask(OnData):
    """Counts by the likelihood of a negative binomial distribution."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        return -torch.distributions.NegativeBinomial(2.0, logits=model(x).clamp(-8, 8)).log_prob(y).mean()


class CensoredTask(OnData):
    """Censored survival times: a Weibull distribution of shape 1.3."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        time, seen = y[:, :1].clamp_min(1e-3), y[:, 1:]
        rate = model(x).clamp(-10, 10)
        shape = 1.3
        log_hazard = math.log(shape) + shape * rate + (shape - 1) * time.log()
        return (((rate.exp() * time) ** shape) - seen * log_hazard).mean()


class EvidentialTask(OnData):
    """Evidence for each class, with a prior that penalizes too much of it."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        alpha = F.softplus(model(x)) + 1
        total = alpha.sum(1)
        fit = torch.digamma(total) - torch.digamma(alpha.gather(1, y[:, None]).squeeze(1))
        wrong = (alpha - 1).sum(1) - (alpha.gather(1, y[:, None]).squeeze(1) - 1)
        return (fit + 0.02 * wrong).mean()


class CompassTask(OnData):
    """Angles by the likelihood of a von Mises distribution."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        out = model(x)
        size = out.norm(dim=1).clamp(1e-3, 30)
        agree = out[:, 0] * y[:, 0].cos() + out[:, 1] * y[:, 0].sin()
        return (torch.special.i0e(size).log() + size - agree).mean() + math.log(2 * math.pi)


class RankedTask(OnData):
    """The continuous ranked probability score of a normal distribution."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        mean, raw = model(x)[:, :2].chunk(2, 1)
        sigma = F.softplus(raw) + 1e-2
        z = (y[:, :1] - mean) / sigma
        normal = torch.distributions.Normal(0.0, 1.0)
        density = (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
        return (sigma * (z * (2 * normal.cdf(z) - 1) + 2 * density - 1 / math.sqrt(math.pi))).mean()


class HuberTask(OnData):
    """The Huber loss: quadratic near zero, linear beyond."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.huber_loss(model(batch[0]), batch[1], delta=0.5)


class TweedieTask(OnData):
    """Positive numbers, some of them zero, by the Tweedie deviance of power 1.5."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        log_mean = model(x).clamp(-6, 6)
        return (2 * y * (-0.5 * log_mean).exp() + 2 * (0.5 * log_mean).exp()).mean()


class SupervisedContrastTask(OnData):
    """Members of a class have to be near each other within the batch (Khosla et al. 2020)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        z = F.normalize(model(x), dim=1)
        itself = torch.eye(len(x), dtype=torch.bool)
        log_p = (z @ z.T / 0.3).masked_fill(itself, -1e9).log_softmax(1)
        same = (y[:, None] == y) & ~itself
        return -((log_p * same).sum(1) / same.sum(1).clamp_min(1)).mean()


class VarianceTask(OnData):
    """Two views agree, each output varies, and none repeats another (VICReg)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        a, b = (model(batch[0] + 0.4 * torch.randn_like(batch[0])) for _ in range(2))
        total = 10 * F.mse_loss(a, b)
        for h in (a, b):
            h = h - h.mean(0)
            together = h.T @ h / (len(h) - 1)
            total = total + 10 * F.relu(1 - (h.var(0) + 1e-4).sqrt()).mean()
            total = total + (together - torch.diag(together.diagonal())).square().sum() / h.shape[1]
        return total


class OverlapTask(OnData):
    """The Dice loss of two areas plus the cross entropy."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        out, y = model(batch[0]), batch[1]
        p = torch.sigmoid(out)
        dice = 1 - (2 * (p * y).sum((1, 2, 3)) + 1) / ((p + y).sum((1, 2, 3)) + 1)
        return dice.mean() + F.binary_cross_entropy_with_logits(out, y)


class RobustTask(OnData):
    """Cross entropy to the power of 0.5, which wrong labels harm less (generalized cross entropy)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        p = model(batch[0]).softmax(1).gather(1, batch[1][:, None])
        return (1 - p.clamp_min(1e-6).sqrt()).mean() * 2


class NegativesTask(OnData):
    """Tells a context from four words that are drawn at random (word2vec)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0]
        drawn = torch.randint(0, 200, (len(x), 4))
        fit = model(x[:, 0], torch.cat([x[:, 1:], drawn], 1))
        return F.binary_cross_entropy_with_logits(fit, F.pad(torch.ones(len(x), 1), (0, 4)))


class MatchTask(OnData):
    """Finds which of the batch's right halves belongs to each left half."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        fit, own = model(batch[0]), torch.arange(len(batch[0]))
        return (F.cross_entropy(fit, own) + F.cross_entropy(fit.T, own)) / 2


class BitsBackTask(OnData):
    """The likelihood of a flow for each feature, relative to that of a normal distribution."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        z, determinant = model(batch[0])
        return (0.5 * z.square().sum(1) - determinant).mean() / z.shape[1] + 0.5


class SequenceTask(OnData):
    """The likelihood of all classes of a sequence by a forward pass over its positions (CRF)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        scores, y = model(batch[0]), batch[1]
        moves = model.moves
        right = scores.gather(2, y[..., None]).sum((1, 2)) + moves[y[:, :-1], y[:, 1:]].sum(1)
        alpha = scores[:, 0]
        for t in range(1, scores.shape[1]):
            alpha = torch.logsumexp(alpha[:, :, None] + moves, 1) + scores[:, t]
        return (alpha.logsumexp(1) - right).mean() / scores.shape[1]


class ChainTask(OnData):
    """The negative log likelihood that the model gives."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return -model(batch[0]).mean()


class ProcessTask(OnData):
    """Values of functions by the likelihood of a normal distribution."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        mean, sigma = model(batch[0])
        return -torch.distributions.Normal(mean, sigma).log_prob(batch[1]).mean() + 1


class ForecastTask(OnData):
    """Reconstructs the state and predicts the next one."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        again, then = model(batch[0])
        return F.mse_loss(again, batch[0]) + F.mse_loss(then, batch[1])


class PairedTask(OnData):
    """The better of two by the logistic loss of their difference, for half the pairs of a batch (BPR)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        score, y = model(batch[0]).squeeze(1), batch[1]
        good, bad = score[y > 0.5], score[y <= 0.5]
        count = min(len(good), len(bad))
        return F.softplus(bad[:count] - good[:count]).mean()


class SmoothTask(OnData):
    """Cross entropy plus the change of the output by a small adversarial step (virtual adversarial
    training)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        out = model(x)
        told = out.detach().softmax(1)
        step = (0.1 * F.normalize(torch.randn_like(x), dim=1)).requires_grad_()
        apart = F.kl_div(model(x + step).log_softmax(1), told, reduction="batchmean")
        (slope,) = torch.autograd.grad(apart, step)
        moved = model(x + 0.8 * F.normalize(slope, dim=1))
        return F.cross_entropy(out, y) + F.kl_div(moved.log_softmax(1), told, reduction="batchmean")


class FlatTask(OnData):
    """Cross entropy plus a penalty on its gradient with respect to the input (Jacobian regularization)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0].clone().requires_grad_()
        fit = F.cross_entropy(model(x), batch[1])
        (slope,) = torch.autograd.grad(fit, x, create_graph=True)
        return fit + 30 * slope.square().sum(1).mean()


class MomentsTask(OnData):
    """An autoencoder whose codes match a normal distribution by a kernel distance (Wasserstein
    autoencoder)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0]
        code = model.blocks[2](model.blocks[1](model.blocks[0](x)))
        drawn = torch.randn_like(code)

        def kernel(a: Tensor, b: Tensor) -> Tensor:
            return (-torch.cdist(a, b).square() / code.shape[1]).exp().mean()

        apart = kernel(code, code) + kernel(drawn, drawn) - 2 * kernel(code, drawn)
        return F.mse_loss(model(x), x) + 0.3 * apart


class RitzTask(OnData):
    """Minimizes the energy of a function with fixed ends (deep Ritz)."""

    def batch(self) -> Batch:
        x = 2 * torch.rand(64, 1) - 1
        return x, math.pi**2 * torch.sin(math.pi * x)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0].clone().requires_grad_()
        u = (1 - x.square()) * model(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return (0.5 * slope.square() - batch[1] * u).mean() + 6


FIFTH_LOSSES: dict[str, type[OnData]] = {
    "grades": GradesTask,
    "overdispersed": OverdispersedTask,
    "censored": CensoredTask,
    "evidential": EvidentialTask,
    "compass": CompassTask,
    "ranked": RankedTask,
    "huber": HuberTask,
    "tweedie": TweedieTask,
    "supervised_contrast": SupervisedContrastTask,
    "variance": VarianceTask,
    "overlap": OverlapTask,
    "robust": RobustTask,
    "negatives": NegativesTask,
    "match": MatchTask,
    "bits_back": BitsBackTask,
    "sequence": SequenceTask,
    "chain": ChainTask,
    "process": ProcessTask,
    "forecast": ForecastTask,
    "paired": PairedTask,
    "smooth": SmoothTask,
    "flat": FlatTask,
    "moments": MomentsTask,
    "ritz": RitzTask,
}
