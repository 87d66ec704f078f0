"""The losses that `gradkern run` records: what a program calls `backward` on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.utils.checkpoint import checkpoint

import gradkern
from gradkern.integrations.losses import Losses, LossMonitor

STEPS = 4


@pytest.fixture
def losses(monkeypatch):
    """The recorder of losses, installed for one test."""
    monkeypatch.setattr(torch.autograd, "backward", torch.autograd.backward)
    for cls in (torch.amp.GradScaler, ShardedGradScaler):
        monkeypatch.setattr(cls, "__init__", cls.__init__)
        monkeypatch.setattr(cls, "scale", cls.scale)
    made = Losses()
    made.install()
    return made


class Loop:
    """A model with a monitor, its optimizer, and the losses that its steps should have."""

    def __init__(self, losses, folder, seed=0):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.losses, self.expected, self.folder = losses, [], folder
        self.monitor = LossMonitor(self.model, self.optimizer, folder)
        self.monitor.losses = losses
        gradkern.patch_torch(self.monitor)

    def loss(self):
        return self.model(torch.randn(5, 6)).square().mean()

    def step(self, *values):
        """Clip and step; `values` add up to the loss of the step."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.01)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.expected.append(sum(float(value) for value in values))

    def check(self, **tolerance):
        self.monitor.close()
        history = gradkern.History.open(self.folder)
        assert history.steps.tolist() == list(range(1, len(self.expected) + 1))
        np.testing.assert_allclose(history.loss, self.expected, **{"rtol": 1e-6, **tolerance})


@pytest.fixture
def loop(losses, run):
    return Loop(losses, run)


def test_one_backward_for_each_step(loop):
    for _ in range(STEPS):
        loss = loop.loss()
        value = loss.item()
        loss.backward()
        loss.detach().zero_()  # as a reduction over ranks may write to it
        loop.step(value)
    loop.check()


def test_micro_batches_that_are_divided_by_their_number(loop):
    for _ in range(STEPS):
        parts = [loop.loss() / 3 for _ in range(3)]
        for part in parts:
            part.backward()
        loop.step(*parts)
    loop.check()


def test_several_roots_and_weights(loop):
    for _ in range(STEPS):
        x = loop.model(torch.randn(5, 6))
        first, second = x.square().mean(), x.abs().mean()
        first.backward(torch.tensor(0.5), retain_graph=True)
        torch.autograd.backward([first, second], [None, torch.tensor([2.0]).squeeze()])
        loop.step(0.5 * first, first, 2 * second)
    loop.check()


def test_a_gradient_penalty(loop):
    for _ in range(STEPS):
        x = torch.randn(5, 6, requires_grad=True)
        loss = loop.model(x).square().mean()
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)  # adds to no parameter
        penalty = grad.square().sum()
        loss.backward(create_graph=True)
        penalty.backward()
        loop.step(loss, penalty)
    loop.check()


def test_reentrant_checkpointing(loop):
    for _ in range(STEPS):
        x = torch.randn(5, 6, requires_grad=True)
        loss = checkpoint(loop.model, x, use_reentrant=True).square().mean()
        loss.backward()
        loop.step(loss)
    loop.check()


@pytest.mark.parametrize("divided", ["before", "after"])
@pytest.mark.parametrize("sharded", [False, True], ids=["GradScaler", "ShardedGradScaler"])
def test_a_scale_is_divided_out(loop, divided, sharded):
    if sharded:
        torch.distributed.init_process_group(
            "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
        )
        scaler = ShardedGradScaler("cpu", init_scale=1024.0)
    else:
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)  # another scale each step
    for _ in range(STEPS):
        parts = [loop.loss() for _ in range(2)]
        for part in parts:
            scaled = scaler.scale(part / 2) if divided == "before" else scaler.scale(part) / 2
            scaled.backward()
        scaler.unscale_(loop.optimizer)
        torch.nn.utils.clip_grad_norm_(loop.model.parameters(), 0.01)
        scaler.step(loop.optimizer)
        scaler.update()
        loop.optimizer.zero_grad()
        loop.expected.append(sum(part.item() for part in parts) / 2)
    if sharded:
        torch.distributed.destroy_process_group()
    loop.check()


def test_a_step_that_the_scaler_skips(loop):
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(STEPS):
        loss = loop.loss() * (float("inf") if step == 1 else 1.0)
        scaler.scale(loss).backward()
        scaler.unscale_(loop.optimizer)
        torch.nn.utils.clip_grad_norm_(loop.model.parameters(), 0.01)
        scaler.step(loop.optimizer)
        scaler.update()
        loop.optimizer.zero_grad()
        loop.expected.append(loss.item())
    loop.check()
    assert gradkern.History.open(loop.folder).skipped.tolist() == [False, True, False, False]


def test_two_models_with_a_scaler_for_one(losses, tmp_path):
    one, two = Loop(losses, tmp_path / "one"), Loop(losses, tmp_path / "two", seed=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(STEPS):
        loss = one.loss()
        loss.backward()
        one.step(loss)
        loss = two.loss()
        scaler.scale(loss).backward()
        scaler.unscale_(two.optimizer)
        torch.nn.utils.clip_grad_norm_(two.model.parameters(), 0.01)
        scaler.step(two.optimizer)
        scaler.update()
        two.optimizer.zero_grad()
        two.expected.append(loss.item())
    one.check()
    two.check()


def test_two_models_with_one_loss_and_several_clips(losses, tmp_path):
    one, two = Loop(losses, tmp_path / "one"), Loop(losses, tmp_path / "two", seed=1)
    for _ in range(STEPS):
        loss = one.loss() + two.loss()
        loss.backward()
        for parameter in one.model.parameters():
            torch.nn.utils.clip_grad_norm_(parameter, 0.01)
        one.optimizer.step()
        one.optimizer.zero_grad()
        one.expected.append(loss.item())
        two.step(loss)
    one.check()
    two.check()


def test_two_optimizers_of_a_model_with_a_loss_each(losses, run):
    """A step has both clips, so that its loss is the sum."""
    loop = Loop(losses, run)
    loop.monitor.close()
    parts = loop.model[0], loop.model[2]
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in parts]
    loop.folder = run.parent / "two"
    loop.monitor = LossMonitor(loop.model, optimizers, loop.folder)
    loop.monitor.losses = losses
    gradkern.patch_torch(loop.monitor)
    for _ in range(STEPS):
        values = []
        for part, optimizer in zip(parts, optimizers, strict=True):
            loop.model.zero_grad()
            loss = loop.loss()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(part.parameters(), 0.01)
            optimizer.step()
            values.append(loss.item())
        loop.expected.append(sum(values))
    loop.check()


def test_what_is_no_number_gives_no_loss(loop):
    for step in range(STEPS):
        x = loop.model(torch.randn(5, 6))
        if step % 2:
            x.backward(torch.ones_like(x))
        else:
            x.mean().backward()
        loop.step(float("nan") if step % 2 else x.mean())
    loop.check()


def test_a_backward_that_fails_adds_nothing(loop):
    for _ in range(STEPS):
        loss = loop.loss()
        with pytest.raises(RuntimeError, match="does not require grad"):
            loss.detach().backward()
        loss.backward()
        loop.step(loss)
    loop.check()
