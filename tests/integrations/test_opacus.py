"""Opacus: norms of what its optimizer steps with, against the gradients of each sample in float64."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import gradkern
from tests.integrations.installed import framework
from tests.integrations.job import CLIP, LR, SIZE, STEPS, Job, mse, network, rate, set_rate

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    opacus = framework("opacus")
    BatchMemoryManager = framework("opacus.utils.batch_memory_manager").BatchMemoryManager


def norms_of(model, samples):
    """Norms of the mean of the samples' clipped gradients."""
    sums = [torch.zeros_like(p, dtype=torch.float64) for p in model.parameters()]
    for x, y in samples:
        grads = torch.autograd.grad(mse(model(x[None]), y[None]), list(model.parameters()))
        total = torch.cat([g.double().flatten() for g in grads]).norm().item()
        for add, grad in zip(sums, grads, strict=True):
            add += grad.double() * min(1.0, CLIP / total) / SIZE
    return [one.norm().item() for one in sums]


def made_private(model, optimizer, job):
    loader = torch.utils.data.DataLoader(job.dataset(), SIZE)
    return opacus.PrivacyEngine().make_private(
        module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=0.0, max_grad_norm=CLIP,
        poisson_sampling=False,
    )  # fmt: skip


def trained(job):
    """The model, and the norms and the loss of each step."""
    model, dtype = network(), torch.bfloat16 if job.low else torch.float32
    model.to(dtype)
    twin = network().to(dtype)  # without Opacus's hooks
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    private, optimizer, loader = made_private(model, optimizer, job)
    job.load(model=model, optimizer=optimizer)
    norms, losses, seen, monitor = [], [], [], None
    if job.run is not None:
        monitor = gradkern.GradMonitor(model, optimizer, job.run)
        monitor.load_state_dict({"step": job.first})

    def before_step(_):
        """Called for the last physical batch of a step only."""
        if monitor is not None:
            monitor.record(loss=np.mean(losses[-job.micro :]), after_clip=True)
        twin.load_state_dict(model.state_dict())
        norms.append(norms_of(twin, seen))
        seen.clear()
        set_rate(optimizer, job.first + len(norms) + 1)

    optimizer.attach_step_hook(before_step)
    set_rate(optimizer, job.first + 1)
    with BatchMemoryManager(
        data_loader=loader, max_physical_batch_size=SIZE // job.micro, optimizer=optimizer
    ) as physical:
        for x, y in physical:
            x, y = x.to(dtype), y.to(dtype)
            loss = mse(private(x), y)
            losses.append(loss.item())
            seen.extend(zip(x, y, strict=True))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    job.save(model=model, optimizer=optimizer)
    if monitor is not None:
        monitor.close()
    return model, norms, np.reshape(losses, (-1, job.micro)).mean(axis=1)


@pytest.mark.parametrize("low", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("micro", [1, 2], ids=["whole", "virtual-steps"])
def test_training(tmp_path, run, assert_same_weights, micro, low):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain, norms, losses = trained(Job(None, micro=micro, low=low))
        trained(Job(run, 0, 3, tmp_path / "state", low, micro))
        model, *_ = trained(Job(run, 3, STEPS, tmp_path / "state", low, micro))
    assert_same_weights(plain, model)
    history = gradkern.History.open(run)
    assert history.names == tuple(name for name, _ in model.named_parameters())
    assert history.steps.tolist() == list(range(1, STEPS + 1))
    assert set(history.phase) == {"after_clip"}
    # The gradients of samples, of this norm, may cancel: bfloat16 rounds each.
    np.testing.assert_allclose(
        history.norm, norms, **({"rtol": 0.02, "atol": CLIP / 2**9} if low else {"rtol": 1e-5})
    )
    np.testing.assert_allclose(history.loss, losses, rtol=1e-6)
    np.testing.assert_allclose(history.lr, [rate(number) for number in range(1, STEPS + 1)], rtol=1e-6)
