"""More models and ways of training of the third set only; see `models`."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.models import ACTIVATIONS
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.reported.training import OnData
from benchmarks.diagnosis.tasks import SIZES, SYMBOLS, Batch


class Translator(nn.Module):
    """An encoder and a decoder of GRUs with dot-product attention between them."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.embed = nn.Embedding(SYMBOLS, width)
        self.encoder, self.decoder = (nn.GRU(width, width, batch_first=True) for _ in range(2))
        self.head = nn.Linear(2 * width, SYMBOLS)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        states, last = self.encoder(self.embed(x))
        out = self.decoder(self.embed(before), last)[0]
        mixed = torch.softmax(out @ states.transpose(1, 2), -1) @ states
        return self.head(torch.cat([out, mixed], -1))


class Maxout(nn.Module):
    """Each unit is the largest of three (Goodfellow et al. 2013)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        widths = [inputs] + [recipe.width] * (recipe.depth - 1)
        self.blocks = nn.ModuleList(nn.Linear(a, 3 * b) for a, b in pairwise(widths))
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.blocks:
            x = layer(x).unflatten(-1, (3, -1)).amax(-2)
        return self.head(x)


class DropPath(nn.Module):
    """Residual blocks that are left out at random while training (stochastic depth)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        self.embed = nn.Linear(inputs, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(recipe.depth))
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(recipe.depth))
        self.activation = ACTIVATIONS[recipe.activation]()
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for norm, layer in zip(self.norms, self.blocks):
            if torch.rand(()) < 0.7:
                x = x + self.activation(layer(norm(x)))
        return self.head(x)


class Spike(torch.autograd.Function):
    """A step forward, the slope of a fast sigmoid backward."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad / (1 + 5 * x.abs()).square()


class Spiking(nn.Module):
    """Leaky integrate-and-fire units over the rows of an image, a readout of their mean rates."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.embed = nn.Linear(inputs, recipe.width)
        self.states = nn.Linear(recipe.width, recipe.width)
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        potential = spikes = x.new_zeros(len(x), self.states.in_features)
        rates = []
        for row in x.unbind(1):
            potential = 0.8 * potential * (1 - spikes.detach()) + self.embed(row) + self.states(spikes)
            spikes = Spike.apply(potential - 0.5)
            rates.append(spikes)
        return self.head(torch.stack(rates).mean(0))


class SqueezeExcite(nn.Module):
    """Convolutions whose channels are weighed by a gate over the whole image."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        self.embed = nn.Conv2d(inputs, width, 3, padding=1)
        self.filters = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(recipe.depth))
        self.squeeze = nn.ModuleList(nn.Linear(width, 6) for _ in range(recipe.depth))
        self.excite = nn.ModuleList(nn.Linear(6, width) for _ in range(recipe.depth))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        for filters, squeeze, excite in zip(self.filters, self.squeeze, self.excite):
            h = F.relu(filters(x))
            gate = torch.sigmoid(excite(F.silu(squeeze(h.mean((2, 3))))))
            x = x + gate[:, :, None, None] * h
        return self.head(x.mean((2, 3)))


class DenoiseTask(OnData):
    """The image without the noise."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0]
        return F.mse_loss(model(x + 0.5 * torch.randn_like(x)), x)


class EvidenceTask(OnData):
    """The lower bound on the likelihood of a variational autoencoder, for each feature."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        out, mean, log_variance = model(batch[0])
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        return F.mse_loss(out, batch[1]) + 0.3 * kl / batch[0].shape[1]


class LikelihoodTask(OnData):
    """The likelihood of a flow for each feature, above that of a unit normal distribution at zero."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        z, log_determinant = model(batch[0])
        return (z.square().sum(1) / 2 - log_determinant).mean() / z.shape[1]


class ReversalTask(OnData):
    """The first ten symbols, from the last to the first."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0][:, :10]
        y = x.flip(1)
        out = model(x, F.pad(y[:, :-1], (1, 0)))
        return F.cross_entropy(out.flatten(0, 1), y.flatten())


class SiameseTask(OnData):
    """Inputs of one class have to be near each other, those of two classes a margin apart."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        h = model(x)
        apart = (h - h.roll(1, 0)).square().mean(1).add(1e-6).sqrt()
        same = (y == y.roll(1, 0)).float()
        return (same * apart.square() + (1 - same) * F.relu(1 - apart).square()).mean()


class QLearningTask(OnData):
    """Deep Q-learning: a class to choose, a reward if it is right, and a target network 20 steps old."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__(recipe, seed)
        self._target: nn.Module | None = None
        self._step = 0

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        if self._step % 20 == 0:
            self._target = copy.deepcopy(model).requires_grad_(False)
        self._step += 1
        x, y = batch
        values = model(x)
        greedy = torch.rand(len(x)) < 0.7
        action = torch.where(greedy, values.argmax(1), torch.randint(0, values.shape[1], (len(x),)))
        after = x.roll(1, 0)
        assert self._target is not None
        target = (action == y).float() + 0.5 * self._target(after).amax(1)
        return F.smooth_l1_loss(values.gather(1, action[:, None]).squeeze(1), target)


FURTHER_TRAINED: dict[str, type[nn.Module]] = {
    "translator": Translator,
    "maxout": Maxout,
    "drop_path": DropPath,
    "spiking": Spiking,
    "squeeze_excite": SqueezeExcite,
}
FURTHER_TRAININGS = {
    "denoise": DenoiseTask,
    "evidence": EvidenceTask,
    "likelihood": LikelihoodTask,
    "reversal": ReversalTask,
    "siamese": SiameseTask,
    "q_learning": QLearningTask,
}
