"""Ways of training of the fifth set only: what changes from step to step, and games."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.fifth.losses import FIFTH_LOSSES
from benchmarks.diagnosis.sets.reported.training import OnData
from benchmarks.diagnosis.tasks import Batch

__all__ = ["FIFTH_TRAININGS"]


class Counted(OnData):
    """A task that knows its step."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__(recipe, seed)
        self.steps, self.step = recipe.steps, 0

    def batch(self) -> Batch:
        self.step += 1
        return self._data.batch()

    @property
    def done(self) -> float:
        """The fraction of the run that is over."""
        return min(self.step / self.steps, 1.0)


class CurriculumTask(Counted):
    """The half of the batch that is nearest to the mean input first, all of it later."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        share = 0.5 + 0.5 * min(2 * self.done, 1.0)
        easy = x.flatten(1).norm(dim=1).argsort()[: max(int(share * len(x)), 2)]
        return F.cross_entropy(model(x[easy]), y[easy])


class ResizingTask(Counted):
    """Images of 4 × 4 pixels first, then 6 × 6, then 8 × 8 (progressive resizing)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        size = (4, 6, 8)[min(int(3 * self.done), 2)]
        small = F.interpolate(batch[0], (size, size), mode="bilinear", align_corners=False)
        return F.cross_entropy(model(small), batch[1])


class UnfreezingTask(Counted):
    """Trains the head first, and every tenth of the run one more block, from the last to the first."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        awake = int(10 * self.done)
        for i, block in enumerate(reversed(model.blocks)):
            block.requires_grad_(i < awake)
        return F.cross_entropy(model(batch[0]), batch[1])


class PruningTask(Counted):
    """The smallest weights are set to zero, up to 70 % of them at two thirds of the run."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        share = 0.7 * min(1.5 * self.done, 1.0)
        with torch.no_grad():
            for block in model.blocks:
                weight = block.layer.weight
                weight.mul_(weight.abs() >= torch.quantile(weight.abs(), share))
        return F.cross_entropy(model(batch[0]), batch[1])


class CutTask(OnData):
    """A part of each image comes from another one, and so does its label (CutMix)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        width = int(torch.randint(2, 5, ()))
        mixed = x.clone()
        mixed[..., :width] = x.roll(1, 0)[..., :width]
        out, share = model(mixed), width / x.shape[-1]
        return (1 - share) * F.cross_entropy(out, y) + share * F.cross_entropy(out, y.roll(1, 0))


class TeacherTask(OnData):
    """Half the labels, and agreement with the average of the weights so far (mean teacher)."""

    teacher: nn.Module | None = None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        if self.teacher is None:
            self.teacher = copy.deepcopy(model)
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), model.parameters()):
                slow.lerp_(fast, 0.1)
            told = self.teacher(batch[0]).softmax(1)
        x, y = batch
        out, half = model(x + 0.3 * torch.randn_like(x)), len(x) // 2
        return F.cross_entropy(out[:half], y[:half]) + 2 * F.mse_loss(out.softmax(1), told)


class PseudoTask(OnData):
    """A third of the labels; elsewhere confident predictions label a noisier view (FixMatch)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        third = len(x) // 3
        with torch.no_grad():
            sure, guess = model(x[third:]).softmax(1).max(1)
        noisy = model(x[third:] + 0.6 * torch.randn_like(x[third:]))
        believed = (F.cross_entropy(noisy, guess, reduction="none") * (sure > 0.9)).mean()
        return F.cross_entropy(model(x[:third]), y[:third]) + believed


class EarlierSelfTask(Counted):
    """The network's outputs of a quarter of the run ago as targets beside the label (self-distillation)."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__(recipe, seed)
        self.earlier: nn.Module | None = None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        if self.step % (self.steps // 4) == 0:
            self.earlier = copy.deepcopy(model)
        out = model(x)
        total = F.cross_entropy(out, y)
        if self.earlier is not None:
            with torch.no_grad():
                told = self.earlier(x).softmax(1)
            total = 0.7 * total - 0.3 * (told * out.log_softmax(1)).sum(1).mean()
        return total


class QueueTask(OnData):
    """A view has to be told from keys of earlier batches, which a slow copy has made (MoCo)."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__(recipe, seed)
        self.slow: nn.Module | None = None
        self.keys = torch.zeros(0)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0]
        if self.slow is None:
            self.slow = copy.deepcopy(model)
        with torch.no_grad():
            for slow, fast in zip(self.slow.parameters(), model.parameters()):
                slow.lerp_(fast, 0.05)
            new = F.normalize(self.slow(x + 0.5 * torch.randn_like(x)), dim=1)
        found = F.normalize(model(x + 0.5 * torch.randn_like(x)), dim=1)
        if not len(self.keys):
            self.keys = F.normalize(torch.randn(96, new.shape[1]), dim=1)
        logits = found @ torch.cat([new, self.keys]).T / 0.3
        self.keys = torch.cat([new, self.keys])[:96]
        return F.cross_entropy(logits, torch.arange(len(x)))


class EnergyTask(OnData):
    """Real inputs get lower energy than samples that descend it from noise (energy model)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0]
        with torch.enable_grad():
            false = torch.randn_like(x)
            for _ in range(4):
                false = false.detach().requires_grad_()
                (slope,) = torch.autograd.grad(model(false)[:, 0].sum(), false)
                false = false - 0.5 * slope.clamp(-1, 1) + 0.05 * torch.randn_like(x)
        real, fake = model(x)[:, 0], model(false.detach())[:, 0]
        return F.softplus(real).mean() + F.softplus(-fake).mean() + 0.01 * (real**2 + fake**2).mean()


class AnnealedTask(Counted):
    """The bound of a variational autoencoder, whose second term is phased in."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        out, mean, logvar = model(batch[0])
        far = (logvar.exp() + mean.square() - 1 - logvar).mean() / 2
        return F.mse_loss(out, batch[0]) + 0.02 * min(2 * self.done, 1.0) * far


class PolicyTask(OnData):
    """Imitates an expert on states that the imitation itself reaches (DAgger)."""

    def batch(self) -> Batch:
        return torch.randn(self._data._recipe.batch, 2), torch.zeros(())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        state, total = batch[0], torch.zeros(())
        for _ in range(4):
            wanted = -torch.tanh(1.5 * state[:, :1] + state[:, 1:])
            action = model(state)[:, :1]
            total = total + F.mse_loss(action, wanted) / 4
            speed = state[:, 1:] + 0.3 * action.detach()
            state = torch.cat([state[:, :1] + 0.3 * speed, speed], 1)
        return total


class DrivenTask(PolicyTask):
    """A policy through a known world: the gradient comes back over eight steps (model-based control)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        state, cost = batch[0], torch.zeros(())
        for _ in range(8):
            force = 3 * torch.tanh(model(state)[:, :1])
            speed = 0.95 * state[:, 1:] + 0.3 * force
            state = torch.cat([state[:, :1] + 0.3 * speed, speed], 1)
            cost = cost + (state.square().sum(1) + 0.05 * force.square().squeeze(1)).mean() / 8
        return cost


class ForwardTask(OnData):
    """Trains each layer by itself: large for an input with its label, small for a wrong label
    (forward-forward)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        right = x + 3 * F.pad(F.one_hot(y, 10).float(), (0, x.shape[1] - 10))
        wrong = x + 3 * F.pad(F.one_hot((y + 1 + torch.randint(0, 9, y.shape)) % 10, 10).float(), (0, 54))
        total = torch.zeros(())
        for layer in [*model.blocks, model.head]:
            right, wrong = layer(right), layer(wrong)
            gap = right.square().mean(1) - wrong.square().mean(1)
            total = total + F.softplus(-2 * gap).mean()
            right, wrong = (F.normalize(h.detach(), dim=1) * h.shape[1] ** 0.5 for h in (right, wrong))
        return total


class SlimTask(OnData):
    """Trains the full width, a quarter of it, and a random width in between (slimmable networks)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        total = torch.zeros(())
        for share in (1.0, 0.25, float(0.25 + 0.75 * torch.rand(()))):
            h = x
            for block in model.blocks:
                h = block(h)
                h = h * (torch.arange(h.shape[1]) < share * h.shape[1]) / share**0.5
            total = total + F.cross_entropy(model.head(h), y) / 3
        return total


class RehearsalTask(Counted):
    """Five classes, then all ten, the old ones along with the new (continual learning with rehearsal)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        known = y < 5 + 5 * min(max(3 * self.done - 1, 0.0), 1.0)
        return F.cross_entropy(model(x[known]), y[known])


FIFTH_TRAININGS: dict[str, type[OnData]] = {
    **FIFTH_LOSSES,
    "curriculum": CurriculumTask,
    "resizing": ResizingTask,
    "unfreezing": UnfreezingTask,
    "pruning": PruningTask,
    "cut": CutTask,
    "mean_teacher": TeacherTask,
    "pseudo": PseudoTask,
    "earlier_self": EarlierSelfTask,
    "queue": QueueTask,
    "energy": EnergyTask,
    "annealed": AnnealedTask,
    "policy": PolicyTask,
    "driven": DrivenTask,
    "forward": ForwardTask,
    "slim": SlimTask,
    "rehearsal": RehearsalTask,
}
