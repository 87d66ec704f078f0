"""What statistics, monitor and history say, on every device."""

from __future__ import annotations

import math

import pytest
import reference as ref
import torch
from strategies import DTYPES, values
from torch import nn

import gradkern


def model_with_gradients(device: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 70), nn.Sequential(nn.Linear(70, 30), nn.LayerNorm(30))).to(device)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    return model


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [2.0, 1.0, 0.0, math.inf, 3.0])
def test_inv_scale(dtype, p, device):
    grads = [values("normal", n, dtype, seed=n) for n in (1, 33, 40_000)]
    named = [(str(i), nn.Parameter(torch.zeros_like(g, device=device))) for i, g in enumerate(grads)]
    for (_, param), grad in zip(named, grads):
        param.grad = grad.to(device)
    stats = gradkern.measure(named, norm_type=p, inv_scale=0.25, count_zeros=True)
    plain = gradkern.measure(named, norm_type=p, count_zeros=True)
    factor = 1.0 if p == 0 else 0.25  # a power of two: exact
    assert torch.equal(stats.norm, plain.norm * factor)
    assert torch.equal(stats.max_abs, plain.max_abs * 0.25)
    assert torch.equal(stats.total_norm, plain.total_norm * factor)
    assert torch.equal(stats.zeros, plain.zeros)
    for row, grad in enumerate(grads):
        expected = ref.total_norm([grad], p) * factor
        if p != 3.0:  # its bound in float64 is wider: see test_norms
            ref.assert_norm(stats.norm[row].item(), expected, wide=ref.is_wide([*grads]), ulp=ref.NORM_ULP)


@pytest.mark.parametrize("depth", [None, 1, 0])
def test_by_layer(depth, device):
    model = model_with_gradients(device)
    layers = gradkern.measure(model).by_layer(depth)
    assert layers.norm.device.type == device
    for row, name in enumerate(layers.names):
        grads = [
            p.grad.cpu()
            for key, p in model.named_parameters()
            if name == "(root)" or key.startswith(name + ".")
        ]
        ref.assert_norm(layers.norm[row].item(), ref.total_norm(grads), wide=False, ulp=ref.TOTAL_ULP)
        assert layers.numel[row] == sum(g.numel() for g in grads)
        assert layers.max_abs[row].item() == max(g.abs().max().item() for g in grads)


def test_monitor_writes_what_was_measured(device, tmp_path):
    model = model_with_gradients(device)
    clipper = gradkern.GradClipper(model, 1.0)
    expected = []
    with gradkern.GradMonitor(model, run_dir=tmp_path) as monitor:
        for step in range(5):
            for p in model.parameters():
                p.grad.normal_()
            stats = clipper.clip_()
            expected.append(stats.norm.tolist())
            monitor.record(stats, loss=float(step))
    history = gradkern.History.open(tmp_path)
    assert history.norm.tolist() == expected
    assert history.loss.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
