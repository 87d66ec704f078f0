"""Stand-ins for the wrappers of frameworks."""

from __future__ import annotations

import torch


class WrappedOptimizer(torch.optim.Optimizer):
    """An optimizer by class only, like Accelerate's: `Optimizer.__init__` is never called."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self, closure=None):
        return self.optimizer.step(closure)
