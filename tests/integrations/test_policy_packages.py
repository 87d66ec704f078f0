"""Policies compared with the packages that people use for them, if they are installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import gradkern
from gradkern.policies import AGC, AdaGC, AutoClip, ZClip
from tests.integrations.installed import framework, without_torchvision

rng = np.random.default_rng(1)
NORMS = [*rng.lognormal(0, 0.3, 50), 40.0, *rng.lognormal(0.1, 0.3, 20), 7.0, *rng.lognormal(0.1, 0.3, 10)]


def pair():
    """Two equal models, one for each implementation."""
    torch.manual_seed(0)
    models = nn.Linear(5, 3), nn.Linear(5, 3)
    models[1].load_state_dict(models[0].state_dict())
    return models


def fill(models, norm, seed):
    """Give both the same gradient of a given norm."""
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(p.shape, generator=generator) for p in models[0].parameters()]
    size = torch.cat([g.flatten() for g in grads]).norm()
    for model in models:
        for p, g in zip(model.parameters(), grads):
            p.grad = g * (norm / size)


def assert_alike(models, rtol=1e-5):
    for a, b in zip(*(model.parameters() for model in models)):
        torch.testing.assert_close(a.grad, b.grad, rtol=rtol, atol=1e-9)


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
def test_autoclip(quantile):
    package = framework("autoclip.torch")
    models = pair()
    ours = gradkern.GradClipper(models[0], policy=AutoClip(100 * quantile, window=30))
    theirs = package.QuantileClip(
        models[1].parameters(), quantile=quantile, history_length=30, global_threshold=True
    )
    for step, norm in enumerate(NORMS):
        fill(models, norm, step)
        ours.clip_()
        theirs.step()
        assert_alike(models)


@pytest.mark.parametrize("max_norm", [None, 1.5])
@pytest.mark.parametrize("mode", ["adaptive_scaling", "mean", "percentile"])
def test_zclip(mode, max_norm):
    package = framework("zclip")
    models = pair()
    limit = float("inf") if max_norm is None else max_norm
    ours = gradkern.GradClipper(models[0], policy=ZClip(mode=mode, max_norm=limit))
    options = {"mode": "percentile"} if mode == "percentile" else {"mode": "zscore", "clip_option": mode}
    theirs = package.ZClip(max_grad_norm=max_norm, **options)
    for step, norm in enumerate(NORMS):
        fill(models, norm, step)
        ours.clip_()
        theirs.step(models[1])
        assert_alike(models, rtol=1e-4)  # the package measures in float32


def test_adagc_of_pytorch_optimizer():
    """Its warm-up is a step shorter than its `warmup_steps`. The means are those of clipped gradients."""
    package = framework("pytorch_optimizer.optimizer.adagc")
    models = pair()
    ours = gradkern.GradClipper(models[0], policy=AdaGC(warmup_steps=10))
    theirs = package.AdaGC(models[1].parameters(), lr=1e-3, warmup_steps=11, weight_decay=0.0)
    for step, norm in enumerate(NORMS):
        fill(models, norm, step)
        ours.clip_()
        theirs.step()
        means = ours.state_dict()[""]["state"][1:]
        expected = torch.stack([theirs.state[p]["gamma"] for p in models[1].parameters()])
        torch.testing.assert_close(means, expected.double(), rtol=1e-4, atol=0)


SHAPES = [(7,), (5, 7), (3, 4, 5), (2, 3, 4, 5)]


def weights_and_gradients():
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    for p in params:
        p.grad = torch.randn_like(p) * torch.rand_like(p).pow(6)
    return params, [p.grad.clone() for p in params]


def test_agc_of_timm():
    package = without_torchvision("timm", "utils.agc")
    params, before = weights_and_gradients()
    gradkern.adaptive_clip_grad_(params, 0.3)
    ours = [p.grad.clone() for p in params]
    for p, grad in zip(params, before):
        p.grad = grad
    package.adaptive_clip_grad(params, 0.3)
    for p, grad in zip(params, ours):
        torch.testing.assert_close(grad, p.grad, rtol=1e-6, atol=1e-9)


def test_agc_of_pytorch_optimizer():
    package = framework("pytorch_optimizer.optimizer.agc")
    params, before = weights_and_gradients()
    gradkern.GradClipper(params, policy=AGC(0.3, units="pytorch_optimizer")).clip_()
    for p, grad in zip(params, before):
        expected = package.agc(p.detach(), grad, agc_eps=1e-3, agc_clip_val=0.3)
        torch.testing.assert_close(p.grad, expected, rtol=1e-6, atol=1e-9)


def test_agc_of_optax():
    package = framework("optax")
    params, before = weights_and_gradients()
    gradkern.GradClipper(params, policy=AGC(0.3, units="optax")).clip_()
    transform = package.adaptive_grad_clip(0.3)
    weights = [p.detach().numpy() for p in params]
    expected, _ = transform.update([g.numpy() for g in before], transform.init(weights), weights)
    for p, want in zip(params, expected):
        np.testing.assert_allclose(p.grad.numpy(), np.asarray(want), rtol=1e-5, atol=1e-9)
