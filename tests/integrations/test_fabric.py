"""Lightning Fabric: loops that clip with `fabric.clip_gradients`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import gradkern
from tests.integrations.installed import framework

lightning = framework("lightning")
MICRO, STEPS = 2, 6


def batches():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(STEPS, MICRO, 4, 6, generator=generator)
    return list(zip(x, x.sum(dim=-1, keepdim=True)))


def fabric_of(precision):
    if precision != "16-mixed":
        return lightning.Fabric(accelerator="cpu", devices=1, precision=precision)
    from lightning.fabric.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)  # Fabric's own choice is one for CUDA
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    return lightning.Fabric(accelerator="cpu", devices=1, plugins=[plugin])


def trained(precision="32-true", run=None, steps=slice(None), checkpoint=None):
    """The trained module."""
    torch.manual_seed(0)
    fabric = fabric_of(precision)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.05))
    state, monitor = {"model": model, "optimizer": optimizer}, None
    if run is not None:
        state["monitor"] = monitor = gradkern.GradMonitor(model, optimizer, run)
        gradkern.patch_torch(monitor)
    if checkpoint is not None and checkpoint.exists():
        fabric.load(checkpoint, state)
    for number, (xs, ys) in list(enumerate(batches(), 1))[steps]:
        optimizer.param_groups[0]["lr"] = 0.05 / number
        of_step = [(model(x) - y).square().mean() / MICRO for x, y in zip(xs, ys)]
        for loss in of_step:
            fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=0.5)
        if monitor is not None:
            monitor.record(loss=sum(of_step))
        optimizer.step()
        optimizer.zero_grad()
    if checkpoint is not None:
        fabric.save(checkpoint, state)
    if monitor is not None:
        monitor.close()
    return net


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "16-mixed"])
def test_fabric(run, measured, assert_same_weights, precision):
    with measured.watching():
        plain = trained(precision)
    net = trained(precision, run)
    history = gradkern.History.open(run)
    assert history.steps.tolist() == list(range(1, STEPS + 1))
    assert history.names == tuple(name for name, _ in net.named_parameters())
    tolerance = 1e-5 if precision == "32-true" else 0.02
    assert_same_weights(plain, net, rtol=tolerance, atol=tolerance / 10)
    np.testing.assert_allclose(history.norm, np.array(measured), rtol=tolerance)
    np.testing.assert_allclose(history.total_norm, measured.totals, rtol=tolerance)
    assert set(history.phase) == {"before_clip"} and history.threshold.tolist() == [0.5] * STEPS
    losses = measured.losses_of_steps(MICRO) / (256.0 if precision == "16-mixed" else 1.0)
    np.testing.assert_allclose(history.loss, losses, rtol=tolerance)
    np.testing.assert_allclose(history.lr, [0.05 / step for step in range(1, STEPS + 1)])


def test_resumed(tmp_path, run, measured):
    """Steps after the checkpoint are replaced, because it contains the monitor's state."""
    with measured.watching():
        trained()
    checkpoint = tmp_path / "state.ckpt"
    trained(run=run, steps=slice(0, 3), checkpoint=checkpoint)
    trained(run=run, steps=slice(3, 5))  # to be replaced
    assert len(gradkern.History.open(run)) == 5
    trained(run=run, steps=slice(3, None), checkpoint=checkpoint)
    history = gradkern.History.open(run)
    assert history.steps.tolist() == list(range(1, STEPS + 1))
    np.testing.assert_allclose(history.norm, np.array(measured), rtol=1e-4)
