"""After its first step a clipper creates no tensor from numbers on the host.

On a device that is a copy, which waits for the device and cannot be part of a CUDA graph.

Run here on the CPU, by the route that devices take; the kernels decline under a dispatch mode.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import gradkern
from gradkern.kernels.backend import NullBackend
from gradkern.policies import AGC, Decision, GlobalNorm, PerLayerNorm, Schedule, Value, custom


class HostTensors(TorchDispatchMode):
    """Counts the tensors that are made from Python's numbers, as `torch.tensor` does."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += "lift_fresh" in str(function)
        return function(*args, **(kwargs or {}))


POLICIES = {
    "limits": lambda: GlobalNorm(0.5),
    "layers": lambda: PerLayerNorm(0.5),
    "schedule": lambda: Schedule(lambda step: 1.0),
    "value": lambda: Value(0.1),
    "agc": lambda: AGC(0.01),
    "function": lambda: custom(lambda s: Decision((0.1 / s.rms.amax()).clamp(max=1.0), skip=False)),
    "number": lambda: custom(lambda s: 0.5),
}


def parameters():
    params = [nn.Parameter(torch.zeros(4, 3)) for _ in range(5)]
    for p in params:
        p.grad = torch.ones(4, 3)
    return params


def test_the_count_counts():
    with HostTensors() as made:
        torch.tensor([1, 2])
        torch.full((), 1.0)
    assert made.count == 1


@pytest.mark.parametrize("on_nonfinite", ["propagate", "zero", "skip"])
@pytest.mark.parametrize("name", POLICIES)
def test_policies_of_groups(name, on_nonfinite, monkeypatch):
    monkeypatch.setattr("gradkern.clipping.one_call.C", NullBackend())
    params = parameters()
    # Rows that are not consecutive have to be indexed.
    groups = {"a": (params[::2], POLICIES[name]()), "b": (params[1::2], 0.5)}
    clipper = gradkern.GradClipper(params, groups=groups, on_nonfinite=on_nonfinite)
    clipper.clip_()
    with HostTensors() as made:
        stats = clipper.clip_()
        assert stats.groups["b"].factor.item() < 1
    # torch's operations measure the norms after `Value` here; on a device the kernels do.
    assert made.count == (1 if name == "value" else 0)


@pytest.mark.parametrize("limits", [(0.5, None), (0.5, 0.1)])
def test_limits_of_param_groups(limits, monkeypatch):
    # Its rows stay on the host.
    monkeypatch.setattr("gradkern.clipping.param_groups.check_no_overlap", lambda *args, **options: None)
    params = parameters()
    groups = [{"params": params[:2], "max_norm": limits[0]}, {"params": params[2:], "max_norm": limits[1]}]
    with HostTensors() as made:  # nothing is kept from call to call
        gradkern.clip_grad_norm_(groups, 1.0)
    assert made.count == 0
