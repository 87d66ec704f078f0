"""Update ratios get the step number of the call of `record` before or within the step."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pytest
import torch
from torch import nn

from gradkern import GradMonitor, History
from gradkern.history.rows import WeightsRow
from gradkern.history.writer import HistoryWriter
from tests.support.loops import layout, small_model, step_row


class Loop:
    """One parameter of four elements; notes the true ratio of each step."""

    def __init__(self, monitor: GradMonitor, weight: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        self.monitor, self.weight, self.optimizer = monitor, weight, optimizer
        self.expected: dict[int, float] = {}
        self.count = 0

    def step(self, number: int) -> None:
        before = self.weight.detach().clone()
        self.optimizer.step()
        changed = self.weight.detach() - before
        self.expected[number] = (changed.norm() / before.norm()).item()

    def run(self, numbers: Collection[int], *, skipped: Collection[int] = (), keep: bool = False) -> None:
        for number in numbers:
            self.count += 1
            (self.weight * float(self.count)).sum().backward()
            self.monitor.record(step=number)
            self.weight.grad.mul_(0.5)  # as other code may clip
            if number not in skipped:
                self.step(number)
            self.optimizer.zero_grad(set_to_none=not keep)

    def check(self, steps: Collection[int]) -> None:
        history = self.monitor.history()
        assert history.update_steps.tolist() == list(steps)
        wanted = [self.expected[step] for step in steps]
        np.testing.assert_allclose(history.update_ratio[:, 0], wanted, rtol=1e-5)
        history.close()


@pytest.fixture
def loop(tmp_path):
    weight = nn.Parameter(torch.full((4,), 1000.0))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    with GradMonitor([("w", weight)], optimizer, tmp_path, update_every=1) as monitor:
        yield Loop(monitor, weight, optimizer)


@pytest.mark.parametrize("first", [0, 1, 4, 1000])
def test_any_first_number(loop, first):
    numbers = range(first, first + 6)
    loop.run(numbers)
    loop.check(numbers)
    history = loop.monitor.history()
    assert history.steps.tolist() == list(numbers) and not history.branches


@pytest.mark.parametrize("number", [1, 1000])
def test_one_step_and_the_end(loop, number, tmp_path):
    loop.run([number])
    loop.monitor.close()
    with History.open(tmp_path) as history:
        assert history.steps.tolist() == history.update_steps.tolist() == [number]


@pytest.mark.parametrize("keep", [True, False])
def test_first_steps_that_a_scaler_skips(loop, keep):
    loop.run(range(1, 9), skipped=(1, 2, 5), keep=keep)
    loop.check([3, 4, 6, 7, 8])


def test_a_step_before_the_loop(loop):
    loop.weight.grad = torch.zeros(4)  # as a distributed checkpoint does
    loop.optimizer.step()
    loop.optimizer.zero_grad()
    loop.run(range(1, 6))
    loop.check(range(1, 6))


def test_a_step_that_was_not_recorded_has_no_number(loop):
    loop.run([1, 2])
    loop.weight.grad = torch.ones(4)
    loop.optimizer.step()
    loop.run([3, 4])
    loop.check([1, 2, 3, 4])


def test_a_distributed_checkpoint_before_the_loop(tmp_path):
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with GradMonitor(model, optimizer, tmp_path, update_every=1) as monitor:
        get_optimizer_state_dict(model, optimizer)
        for _ in range(3):
            model(torch.randn(5, 6)).square().mean().backward()
            monitor.record(after_clip=False)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
        history = monitor.history()
        assert history.update_steps.tolist() == [1, 2, 3] and (history.update_ratio[0] > 0).any()


def test_recorded_within_the_step(loop):
    """In the closure, as Lightning's hooks are called: after the optimizer's pre-hooks."""
    for number in range(1, 5):
        before = loop.weight.detach().clone()

        def closure(number=number):
            loop.optimizer.zero_grad()
            loss = (loop.weight * float(number)).sum()
            loss.backward()
            loop.monitor.record()
            return loss

        loop.optimizer.step(closure)
        changed = loop.weight.detach() - before
        loop.expected[number] = (changed.norm() / before.norm()).item()
    loop.check(range(1, 5))


@pytest.mark.parametrize("when", ["pre", "post"])
def test_recorded_in_a_hook_of_the_optimizer(loop, when):
    getattr(loop.optimizer, f"register_step_{when}_hook")(lambda *_: loop.monitor.record())
    for number in range(1, 5):
        (loop.weight * float(number)).sum().backward()
        loop.step(number)
        loop.optimizer.zero_grad()
    loop.check(range(1, 5))


def test_gradients_that_are_replaced_after_they_were_recorded(loop):
    for number in range(1, 5):
        (loop.weight * float(number)).sum().backward()
        loop.monitor.record()
        loop.weight.grad = loop.weight.grad / 3
        loop.step(number)
        loop.optimizer.zero_grad()
    loop.check(range(1, 5))


def test_a_step_recorded_again_is_looked_at_again(loop):
    loop.run([1, 2, 3, 3, 3, 4, 5])
    loop.check(range(1, 6))


def test_steps_looked_at_again_after_a_resume_though_none_was_recorded(tmp_path):
    weight = nn.Parameter(torch.full((4,), 1000.0))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    for start, end in ((0, 18), (10, 23)):
        with GradMonitor([("w", weight)], optimizer, tmp_path, every=10, update_every=5) as monitor:
            monitor.load_state_dict({"step": start})
            loop = Loop(monitor, weight, optimizer)
            loop.run(range(start + 1, end))
    with History.open(tmp_path) as history:
        assert history.steps.tolist() == [10, 20] and not history.branches
        assert history.update_steps.tolist() == [1, 2, 4, 5, 10, 15, 20]
        np.testing.assert_allclose(history.update_ratio[-2, 0], loop.expected[15], rtol=1e-5)
    with History.open(tmp_path, superseded=True) as history:
        assert history.update_steps.tolist() == [1, 2, 4, 5, 10, 15, 15, 20]


def test_weights_take_no_later_steps_with_them(tmp_path):
    where = layout(2)
    weights = [
        WeightsRow(s, where, True, np.ones(2, np.float32), np.full(2, s, np.float32)) for s in (3, 7, 5)
    ]
    writer = HistoryWriter(tmp_path, {})
    writer.write([step_row(s, [s, s], where) for s in range(1, 9)] + weights)
    writer.write([step_row(9, [9, 9], where)])
    writer.close()
    writer = HistoryWriter(tmp_path, {})
    assert writer.last_step == 9
    writer.write([step_row(10, [10, 10], where)])
    writer.close()
    with History.open(tmp_path) as history:
        assert history.steps.tolist() == list(range(1, 11)) and not history.branches
        assert history.update_steps.tolist() == [3, 5]  # 7 belonged to the steps before the return to 5
