"""Frameworks that need no class of gradkern's: `patch_torch(monitor)`, as docs/frameworks says for each.

A recipe trains a small model with and without a monitor: weights agree, norms are those that a float64
measurement at the clip gives, losses what `backward` was called on, and learning rates those that were set.
"""

from __future__ import annotations

import contextlib
import warnings
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

import gradkern
from tests.integrations import recipes
from tests.integrations.installed import framework, run_page
from tests.integrations.job import CLIP, LR, SCALE, STEPS, Job, close, rate, set_rate

LOOPS = [
    recipes.timm, recipes.ignite, recipes.skorch, recipes.fastai, recipes.fastai_wrapper, recipes.litgpt,
    recipes.torchao_8bit, recipes.torchao_4bit, recipes.torchao_fp8, recipes.compiled,
]  # fmt: skip
RATES = [rate(number) for number in range(1, STEPS + 1)]
#: fastai's mixed precision needs a GPU.
FP32_ONLY = (recipes.fastai, recipes.fastai_wrapper)
WAYS = ["whole", "accumulated", "resumed"]


@pytest.fixture(autouse=True)
def _closed():
    yield
    close()


@pytest.fixture
def _eager(request):
    """torchao's optimizers compile their steps, which takes a C++ compiler and half a minute."""
    if "torchao" not in request.node.name:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.usefixtures("_eager")
@pytest.mark.parametrize("recipe", LOOPS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("way", WAYS)
def test_recipe(tmp_path, run, measured, assert_same_weights, recipe, way):
    """A resumed training is in the framework's lower precision, where it has one on CPUs."""
    low = way == "resumed" and recipe not in FP32_ONLY
    micro = 2 if way == "accumulated" else 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with looked_up_late(recipe), measured.watching():
            plain = trained(recipe, Job(None, low=low, micro=micro), tmp_path / "plain", way)
        model = trained(recipe, Job(run, low=low, micro=micro), tmp_path / "ours", way)
    assert_same_weights(plain, model, **({"rtol": 0.02, "atol": 2e-3} if low else {}))
    history = gradkern.History.open(run)
    assert history.steps.tolist() == list(range(1, STEPS + 1))
    assert history.names == tuple(name for name, _ in model.named_parameters())
    clips = (
        measured[1::2] if recipe is recipes.skorch and micro == 2 else measured
    )  # it clips every micro-batch
    tolerance = {"rtol": 0.02, "atol": 1e-4} if low else {"rtol": 1e-4, "atol": 1e-8}
    np.testing.assert_allclose(history.norm, np.array(clips), **tolerance)
    assert set(history.phase) == {"before_clip"} and history.clipped.all()
    assert history.threshold.tolist() == [CLIP] * STEPS
    np.testing.assert_allclose(history.lr, RATES, rtol=1e-6)
    losses = measured.losses_of_steps(micro) / (SCALE if recipe is recipes.timm and low else 1)
    np.testing.assert_allclose(history.loss, losses, rtol=0.02 if low else 1e-5)


def looked_up_late(recipe):
    """Lets skorch look torch's function up at each call: it imported the function before it was patched."""
    if recipe is not recipes.skorch:
        return contextlib.nullcontext()
    module = framework("skorch.callbacks.regularization")
    return mock.patch.object(
        module, "clip_grad_norm_", lambda *a, **k: torch.nn.utils.clip_grad_norm_(*a, **k)
    )


def trained(recipe, job, folder, way):
    """The model after all steps. A resumed training continues from the checkpoint of step 3."""
    if way != "resumed":
        model = recipe(job)
        close()
        return model
    folder.mkdir()
    job.checkpoint = folder / "state"
    for job.first, job.last in ((0, 3), (3, STEPS)):
        model = recipe(job)
        close()
    return model


def gan(job, low, micro):
    """A generator and its critic, trained in turn on the batches of a job."""
    torch.manual_seed(0)
    models = {"G": nn.Linear(4, 6), "D": nn.Linear(6, 1)}
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=LR) for name, model in models.items()}
    monitor = job.monitor(models, optimizers)
    state = {**models, **{f"of_{name}": optimizer for name, optimizer in optimizers.items()}}
    job.load(**state)

    def step(name, number, loss_of):
        set_rate(optimizers[name], number)
        models[name].zero_grad()
        total = 0.0
        for part in range(micro):
            generator = torch.Generator().manual_seed(2 * number + part)
            noise, real = torch.randn(8, 4, generator=generator), torch.randn(8, 6, generator=generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                loss = loss_of(models["G"], models["D"], noise, real) / micro
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(models[name].parameters(), CLIP)
        optimizers[name].step()
        if monitor is not None:
            monitor.amend(monitor.step, part=name, loss=total)

    for number in range(1, STEPS + 1)[job.batches]:
        step("D", number, lambda G, D, noise, real: D(G(noise).detach()).mean() - D(real).mean())
        step("G", number, lambda G, D, noise, real: -D(G(noise)).mean())
    job.save(**state)
    close()
    return nn.ModuleDict(models)


@pytest.mark.parametrize("micro", [1, 2], ids=["whole", "accumulated"])
@pytest.mark.parametrize("low", [False, True], ids=["fp32", "bf16"])
def test_two_models_of_a_gan(tmp_path, run, measured, assert_same_weights, low, micro):
    with measured.watching():
        plain = gan(Job(None), low, micro)
    gan(Job(run, 0, 3, tmp_path / "state"), low, micro)
    ours = gan(Job(run, 3, STEPS, tmp_path / "state"), low, micro)
    tolerance = 0.02 if low else 1e-5
    assert_same_weights(plain, ours, rtol=tolerance, atol=tolerance / 10)
    history = gradkern.History.open(run)
    assert history.steps.tolist() == list(range(1, STEPS + 1))
    np.testing.assert_allclose(history.lr_groups, np.transpose([RATES, RATES]), rtol=1e-6)
    columns = {name: history.norm[:, column] for column, name in enumerate(history.names)}
    losses = measured.losses_of_steps(micro)
    for first, name in enumerate(("D", "G")):  # the order of their steps
        expected = [row[0] for row in measured[first::2]]
        np.testing.assert_allclose(columns[f"{name}.weight"], expected, rtol=tolerance)
        np.testing.assert_allclose(
            history.extra[f"loss/{name}"], losses[first::2], rtol=tolerance, atol=tolerance / 10
        )


def test_the_page(tmp_path):
    for name in ("ignite", "skorch", "fastai.basics", "stable_baselines3", "opacus"):
        framework(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_page("others.md")
    rows = {
        run: len(gradkern.History.open(tmp_path / "runs" / run)) for run in ("ignite", "skorch", "fastai")
    }
    assert rows == {"ignite": 4, "skorch": 4, "fastai": 4}
    ppo = gradkern.History.open(tmp_path / "runs" / "ppo")
    assert len(ppo) == 8 and np.flatnonzero(ppo.has_loss).tolist() == [3, 7]
    assert len(gradkern.History.open(tmp_path / "runs" / "gan")) == 3
    assert gradkern.History.open(tmp_path / "runs" / "private").steps.size
