"""Limits that a captured graph reads from the device: replays use a limit that was set after the capture.

Traced graphs stand in for CUDA graphs: both keep the tensors that they were made with.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import gradkern
from gradkern.clipping.deciding import Group, NormGroups
from gradkern.policies import GlobalNorm, PerLayerNorm

CPU = torch.device("cpu")


def gradients(*values):
    params = [nn.Parameter(torch.zeros(2)) for _ in values]
    for p, value in zip(params, values):
        p.grad = torch.tensor([3.0, 4.0]) / 5 * value
    return params


@pytest.mark.parametrize("make", [GlobalNorm, PerLayerNorm])
def test_the_copy_is_filled_in_place(make):
    policy = make(1.0)
    copy = policy.limit_on(CPU)
    policy.max_norm = 0.25
    assert policy.limit_on(CPU) is copy and copy.item() == 0.25 and copy.dtype == torch.float64
    with pytest.raises(ValueError, match="max_norm: expected a number that is not negative"):
        policy.max_norm = -1.0
    assert copy.item() == policy.max_norm == 0.25


@pytest.mark.parametrize("make", [GlobalNorm, PerLayerNorm])
def test_a_replay_goes_by_the_new_limit(make):
    policy = make(1.0)
    stats = gradkern.measure(gradients(2.0, 1.5))
    policy.decide(stats)  # as the warm-up before a capture
    graph = make_fx(lambda: policy.decide(stats).factor)()
    before = graph()
    policy.max_norm = 0.5
    torch.testing.assert_close(graph(), before / 2)
    policy.max_norm = math.inf
    assert bool((graph() == 1).all())


def test_a_replay_with_groups():
    params = gradients(2.0, 4.0, 8.0)
    first, second = GlobalNorm(1.0), GlobalNorm(2.0)
    groups = NormGroups(
        [Group("a", [0], first), Group("b", [1], second), Group("c", [2], None)], ["0", "1", "2"]
    )
    from gradkern.clipping import route

    measured = route.measure("test", params, ["0", "1", "2"], 2.0, False, members=groups.members)
    stats = gradkern.measure(params)
    groups.decide(stats, measured)
    graph = make_fx(lambda: groups.decide(stats, measured)[0].factor)()
    torch.testing.assert_close(graph(), torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64), rtol=1e-5, atol=0)
    first.max_norm, second.max_norm = 0.5, 100.0
    torch.testing.assert_close(
        graph(), torch.tensor([0.25, 1.0, 1.0], dtype=torch.float64), rtol=1e-5, atol=0
    )


def test_the_clipper_passes_it_on():
    params = gradients(2.0)
    clipper = gradkern.GradClipper(params, 1.0)
    copy = clipper.policies[""].limit_on(CPU)
    clipper.max_norm = 0.5
    assert copy.item() == 0.5 and clipper.clip_().threshold == 0.5
    torch.testing.assert_close(params[0].grad.norm(), torch.tensor(0.5))


def test_a_capture_needs_a_step_before_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(
        RuntimeError, match="a CUDA graph is being captured before the first step on this device"
    ):
        GlobalNorm(1.0).limit_on(torch.device("cuda", 0))
