"""The common parts of the frameworks' test trainings: data, model, checkpoints, learning rates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import gradkern

LR, CLIP, STEPS, SIZE = 0.05, 0.1, 5, 8
SCALE = 256.0  # of a GradScaler
mse = nn.functional.mse_loss


@dataclass
class Job:
    """What a recipe trains: batches `first` to `last`. Resumes from the checkpoint unless `first` is 0, and
    saves it."""

    run: Path | None  # None: without gradkern
    first: int = 0
    last: int = STEPS
    checkpoint: Path | None = None
    low: bool = False  # in bfloat16, or with a GradScaler
    micro: int = 1  # micro-batches that are accumulated for a step

    @property
    def batches(self):
        return slice(self.first, self.last)

    def tensors(self):
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(STEPS, SIZE, 6, generator=generator)
        return (part[self.batches].flatten(0, 1) for part in (x, x.sum(dim=2, keepdim=True)))

    def dataset(self):
        return torch.utils.data.TensorDataset(*self.tensors())

    def loader(self):
        return torch.utils.data.DataLoader(self.dataset(), SIZE // self.micro)

    def counted(self, batches):
        """Micro-batches with the number of their step, and whether each is the last of its step."""
        for index, batch in enumerate(batches):
            yield self.first + index // self.micro + 1, (index + 1) % self.micro == 0, batch

    def autocast(self):
        return torch.autocast("cpu", torch.bfloat16, enabled=self.low)

    def monitor(self, model, optimizer, when=None):
        """A monitor that gets the model's clips; None without gradkern."""
        if self.run is None:
            return None
        monitor = gradkern.GradMonitor(model, optimizer, self.run)
        gradkern.patch_torch(monitor, when=when)
        OPEN.append(monitor)
        if self.first:
            monitor.load_state_dict({"step": self.first})
        return monitor

    def load(self, **objects):
        if self.first:
            state = torch.load(self.checkpoint, weights_only=False)
            for name, one in objects.items():
                one.load_state_dict(state[name])

    def save(self, **objects):
        if self.checkpoint is not None:
            torch.save({name: one.state_dict() for name, one in objects.items()}, self.checkpoint)


OPEN: list[gradkern.GradMonitor] = []


def close():
    """Write what is left; some frameworks keep models and their monitors alive."""
    gradkern.unpatch_torch()
    while OPEN:
        OPEN.pop().close()


def network(width=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 1))


def rate(number):
    """The learning rate of a step; steps are numbered from 1."""
    return LR / number


def set_rate(optimizer, number):
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate(number))
        else:
            group["lr"] = rate(number)


class Losses(list):
    """The losses of the micro-batches of a step."""

    def mean(self):
        """Their mean; begins the next step."""
        value = sum(self) / len(self)
        self.clear()
        return value
