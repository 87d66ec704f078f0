"""Update ratios belong to the step that they are of, wherever `record` is called and whatever it says."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pytest
import torch
from _loops import layout, small_model, step_row
from torch import nn

from gradkern import GradMonitor, History
from gradkern.history.rows import WeightsRow
from gradkern.history.writer import HistoryWriter


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

    def run(
        self,
        numbers: Collection[int],
        record_first: bool,
        *,
        skipped: Collection[int] = (),
        keep: bool = False,
        clip: bool = False,
    ) -> None:
        for number in numbers:
            self.count += 1
            (self.weight * float(self.count)).sum().backward()
            if record_first:
                self.monitor.record(step=number)
            if clip:
                self.weight.grad.mul_(0.5)
            if number not in skipped:
                self.step(number)
            if not record_first:
                self.monitor.record(step=number)
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


@pytest.mark.parametrize("record_first", [True, False])
@pytest.mark.parametrize("first", [0, 1, 4, 1000])
def test_any_first_number(loop, first, record_first):
    numbers = range(first, first + 6)
    loop.run(numbers, record_first)
    loop.check(numbers)
    history = loop.monitor.history()
    assert history.steps.tolist() == list(numbers) and not history.branches


@pytest.mark.parametrize("number", [1, 1000])
def test_one_step_and_the_end(loop, number, tmp_path):
    loop.run([number], record_first=False)
    loop.monitor.close()
    with History.open(tmp_path) as history:
        assert history.steps.tolist() == history.update_steps.tolist() == [number]


@pytest.mark.parametrize("record_first", [True, False])
@pytest.mark.parametrize("keep", [True, False])
def test_first_steps_that_a_scaler_skips(loop, record_first, keep):
    loop.run(range(1, 9), record_first, skipped=(1, 2, 5), keep=keep)
    loop.check([3, 4, 6, 7, 8])


@pytest.mark.parametrize(("record_first", "clip"), [(True, True), (True, False), (False, True)])
def test_a_step_before_the_loop(loop, record_first, clip):
    loop.weight.grad = torch.zeros(4)  # as a distributed checkpoint does
    loop.optimizer.step()
    loop.optimizer.zero_grad()
    loop.run(range(1, 6), record_first, clip=clip)
    loop.check(range(1, 6))


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


def test_an_optimizer_that_computes_the_gradients(tmp_path):
    weight = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.LBFGS([weight], lr=0.1, max_iter=2)

    def closure():
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    with GradMonitor([("w", weight)], optimizer, tmp_path, update_every=1) as monitor:
        for _ in range(3):
            monitor.record(loss=optimizer.step(closure))
        assert monitor.history().update_steps.tolist() == [1, 2, 3]


def test_statistics_recorded_when_the_gradients_are_gone(loop):
    from gradkern import measure

    for number in range(1, 5):
        (loop.weight * float(number)).sum().backward()
        stats = measure([("w", loop.weight)])
        loop.step(number)
        loop.optimizer.zero_grad()
        loop.monitor.record(stats)
    loop.check(range(1, 5))


def test_gradients_that_are_replaced_after_they_were_recorded(loop):
    for number in range(1, 5):
        (loop.weight * float(number)).sum().backward()
        loop.monitor.record()
        loop.weight.grad = loop.weight.grad / 2
        loop.step(number)
        loop.optimizer.zero_grad()
    loop.check(range(1, 5))


@pytest.mark.parametrize("record_first", [True, False])
def test_a_step_recorded_again_is_looked_at_again(loop, record_first):
    loop.run([1, 2, 3, 3, 3, 4, 5], record_first)
    loop.check(range(1, 6))


@pytest.mark.parametrize("record_first", [True, False])
def test_steps_looked_at_again_after_a_resume_though_none_was_recorded(tmp_path, record_first):
    weight = nn.Parameter(torch.full((4,), 1000.0))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    for start, end in ((0, 18), (10, 23)):
        with GradMonitor([("w", weight)], optimizer, tmp_path, every=10, update_every=5) as monitor:
            monitor.load_state_dict({"step": start})
            loop = Loop(monitor, weight, optimizer)
            loop.run(range(start + 1, end), record_first)
    with History.open(tmp_path) as history:
        assert history.steps.tolist() == [10, 20] and not history.branches
        assert history.update_steps.tolist() == [1, 2, 4, 5, 10, 15, 20]
        np.testing.assert_allclose(history.update_ratio[-2, 0], loop.expected[15], rtol=1e-5)
    with History.open(tmp_path, superseded=True) as history:
        assert history.update_steps.tolist() == [1, 5, 10, 15, 15, 20]


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
        assert history.update_steps.tolist() == [3, 5]  # 7 was of what came before the step back to 5
