"""Losses and ways of training of the ninth set only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.reported.training import OnData
from benchmarks.diagnosis.tasks import Batch

__all__ = ["NINTH_TRAININGS"]


class ExpectilesTask(OnData):
    """The upper expectile of a target: errors above count nine times those below."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        off = batch[1] - model(batch[0])
        return (torch.where(off > 0, 0.9, 0.1) * off.square()).mean()


class BinsTask(OnData):
    """A target as a soft histogram over the outputs, from -2 to 2 (Imani and White 2018)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        out = model(batch[0])
        bins = torch.linspace(-2, 2, out.shape[1])
        aim = (-((bins - batch[1][:, :1]) / 0.5).square()).softmax(1)
        return F.cross_entropy(out, aim)


class SigmoidPairsTask(OnData):
    """Two noisy views belong together or not, each pair of the batch by itself (Zhai et al. 2023)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0]
        a, b = (F.normalize(model(x + 0.2 * torch.randn_like(x)), dim=1) for _ in range(2))
        same = 2 * torch.eye(len(x)) - 1
        return -F.logsigmoid(same * (6 * a @ b.T - 3)).sum(1).mean()


class OrientationTask(OnData):
    """How often an image was turned, without any other label (Gidaris et al. 2018)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0]
        turned = torch.cat([x.rot90(k, (2, 3)) for k in range(4)])
        return F.cross_entropy(model(turned)[:, :4], torch.arange(4).repeat_interleave(len(x)))


class CorruptedTask(OnData):
    """Which features of a row were replaced by noise (after VIME); as many outputs as features."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0]
        swapped = torch.rand_like(x) < 0.3
        mixed = torch.where(swapped, torch.randn_like(x), x)
        return F.binary_cross_entropy_with_logits(model(mixed), swapped.float())


class SoftActorTask(OnData):
    """A random real action near a target, with a reward for chance itself (maximum entropy)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        mean, spread = model(batch[0])[:, :2].chunk(2, 1)
        spread = spread.clamp(-3, 1)
        action = mean + spread.exp() * torch.randn_like(mean)
        return ((action - batch[1][:, :1]).square() - 0.1 * spread).mean()


class BalancedLogitsTask(OnData):
    """Cross entropy of logits that are shifted by how common each class is (Menon et al. 2021)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        out = model(batch[0])
        common = torch.bincount(batch[1], minlength=out.shape[1]).float() + 1
        return F.cross_entropy(out + (common / common.sum()).log(), batch[1])


class TverskyTask(OnData):
    """A soft overlap of answers and tags, in which misses count more than false alarms."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        p, y = torch.sigmoid(model(batch[0])), batch[1]
        hit, miss, alarm = (p * y).sum(0), ((1 - p) * y).sum(0), (p * (1 - y)).sum(0)
        return 1 - ((hit + 1) / (hit + 0.7 * miss + 0.3 * alarm + 1)).mean()


class DistantTask(OnData):
    """The features of a frozen random network (random network distillation)."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__(recipe, seed)
        self._target: Any = None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        out = model(batch[0])
        if self._target is None:
            sizes = batch[0].shape[1], out.shape[1]
            self._target = [torch.randn(sizes[0], 32) / sizes[0] ** 0.5, torch.randn(32, sizes[1]) / 3]
        first, second = self._target
        return F.mse_loss(out, torch.tanh(2 * batch[0] @ first) @ second)


NINTH_TRAININGS: dict[str, type[OnData]] = {
    "expectiles": ExpectilesTask,
    "bins": BinsTask,
    "sigmoid_pairs": SigmoidPairsTask,
    "orientation": OrientationTask,
    "corrupted": CorruptedTask,
    "soft_actor": SoftActorTask,
    "balanced_logits": BalancedLogitsTask,
    "tversky": TverskyTask,
    "distant": DistantTask,
}
