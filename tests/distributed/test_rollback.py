"""Ranks roll back together, whichever of them saw the cause."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gradkern
from gradkern.diagnosis import Finding


def recovery_job() -> tuple[list[int], list[float]]:
    """Weights become NaN on one rank; data-parallel gradients then are on all."""
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    clipper = gradkern.GradClipper(model, 10.0, on_nonfinite="skip")
    guard = gradkern.RollbackGuard(
        lambda: model.load_state_dict(kept), max_skips=3, window=20, every=2, cool_down=4
    )
    generator = torch.Generator().manual_seed(dist.get_rank())
    restored, losses = [], []
    for step in range(60):
        if step == 10 and dist.get_rank() == 1:
            nn.init.constant_(model.module.weight, math.nan)
        x = torch.randn(16, 4, generator=generator)
        loss = (model(x) - x.sum(dim=1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        stats = clipper.clip_()
        losses.append(loss.item())
        if guard.check(stats):
            restored.append(step)
        elif not stats.skip_step:
            optimizer.step()
    return restored, losses[-1:]


def test_training_on_two_ranks_recovers(ranks):
    (first, loss), (second, other) = ranks(2)(recovery_job)
    assert first == second == [13]
    assert loss[0] < 1e-3 and other[0] < 1e-3


def finding_job(budget: int) -> tuple[list[int], str]:
    """Only rank 0 gets a finding."""
    restored: list[int] = []
    guard = gradkern.RollbackGuard(lambda: restored.append(step), every=2, cool_down=0, budget=budget)
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    stats = gradkern.GradClipper([p], 1.0).clip_()
    step = 0
    try:
        for step in range(12):
            if dist.get_rank() == 0 and step in (4, 8):
                guard.found(Finding("exploding_gradient", "severe", first_step=3, last_step=4))
            guard.check(stats)
    except gradkern.RollbackError as error:
        return restored, str(error)
    return restored, ""


@pytest.mark.parametrize("budget", [1, 2])
def test_a_finding_of_one_rank_is_agreed_on(ranks, budget):
    answers = ranks(2)(finding_job, budget=budget)
    expected = [5, 9][:budget]
    assert [restored for restored, _ in answers] == [expected, expected]
    assert all(bool(message) == (budget == 1) for _, message in answers)
