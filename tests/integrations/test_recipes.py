"""Frameworks that need no class of ours: `patch_torch(monitor)`, as docs/frameworks says for each.

A recipe trains a small model with and without a monitor: weights agree, norms are those that a float64
measurement at the clip gives, and rows, learning rates and losses are what the framework used.
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
from tests.integrations.recipes import CLIP, LR, STEPS, Job, close, network

LOOPS = [recipes.timm, recipes.ignite, recipes.skorch, recipes.fastai, recipes.litgpt, recipes.torchao]


@pytest.fixture
def _eager():
    """torchao's optimizers compile their steps, which takes a C++ compiler and half a minute."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.usefixtures("_eager")
@pytest.mark.parametrize("recipe", LOOPS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("resumed", [False, True], ids=["whole", "resumed"])
def test_recipe(tmp_path, run, measured, assert_same_weights, recipe, resumed):
    check(tmp_path, run, measured, assert_same_weights, recipe, resumed)


@pytest.mark.parametrize("resumed", [False, True], ids=["whole", "resumed"])
def test_compiled_model(tmp_path, run, measured, assert_same_weights, resumed):
    check(tmp_path, run, measured, assert_same_weights, recipes.compiled, resumed)


def check(tmp_path, run, measured, assert_same_weights, recipe, resumed):
    """A resumed training is in the framework's lower precision, where it has one on CPUs."""
    low = resumed and recipe is not recipes.fastai
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with measured.watching(), looked_up_late(recipe):
            plain = trained(recipe, None, tmp_path / "plain", low, resumed)
        model = trained(recipe, run, tmp_path / "ours", low, resumed)
    assert_same_weights(plain, model, **({"rtol": 0.02, "atol": 1e-3} if low else {}))
    history = gradkern.History.open(run)
    assert history.steps.tolist() == list(range(1, STEPS + 1))
    assert history.names == tuple(name for name, _ in model.named_parameters())
    if recipe is not recipes.skorch:  # which has torch's function from before it was watched
        tolerance = {"rtol": 0.02, "atol": 1e-4} if low else {"rtol": 1e-4, "atol": 1e-8}
        np.testing.assert_allclose(history.norm, np.array(measured), **tolerance)
    assert set(history.phase) == {"before_clip"} and history.clipped.all()
    assert history.threshold.tolist() == [CLIP] * STEPS
    np.testing.assert_allclose(history.lr, [LR] * STEPS)
    assert history.has_loss.all()


def looked_up_late(recipe):
    """skorch has torch's function by name, from before it is watched."""
    if recipe is not recipes.skorch:
        return contextlib.nullcontext()
    module = framework("skorch.callbacks.regularization")
    return mock.patch.object(
        module, "clip_grad_norm_", lambda *a, **k: torch.nn.utils.clip_grad_norm_(*a, **k)
    )


def trained(recipe, run, folder, low, resumed):
    """The model after all steps. A resumed training goes on from the checkpoint of step 3."""
    if not resumed:
        model = recipe(Job(run, low=low))
        close()
        return model
    folder.mkdir()
    checkpoint = folder / "state"
    recipe(Job(run, 0, 3, checkpoint, low))
    close()
    model = recipe(Job(run, 3, STEPS, checkpoint, low))
    close()
    return model


@pytest.fixture(autouse=True)
def _closed():
    yield
    close()


def test_stable_baselines3(tmp_path, run, measured, assert_same_weights):
    sb3 = framework("stable_baselines3")

    def trained(run, saved):
        """Four steps, and two more from the checkpoint."""
        agent = sb3.A2C(
            "MlpPolicy", "CartPole-v1", n_steps=5, seed=0, device="cpu", max_grad_norm=CLIP,
            policy_kwargs={"net_arch": [8]},
        )  # fmt: skip
        Job(run).monitor(agent.policy, agent.policy.optimizer)
        agent.learn(20)
        agent.save(saved)
        close()
        agent = sb3.A2C.load(saved, env=sb3.common.env_util.make_vec_env("CartPole-v1", seed=0), device="cpu")
        agent.set_random_seed(1)
        Job(run, 4).monitor(agent.policy, agent.policy.optimizer)
        agent.learn(10, reset_num_timesteps=False)
        close()
        return agent.policy

    with measured.watching():
        plain = trained(None, tmp_path / "plain.zip")
    policy = trained(run, tmp_path / "ours.zip")
    assert_same_weights(plain, policy, rtol=1e-4, atol=1e-6)
    history = gradkern.History.open(run)
    assert history.steps.tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(history.norm, np.array(measured), rtol=1e-3, atol=1e-6)
    assert (history.lr > 0).all() and history.clipped.any()


def test_opacus(tmp_path, run):
    opacus = framework("opacus")

    def trained(job):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        private, optimizer, loader = opacus.PrivacyEngine().make_private(
            module=model, optimizer=optimizer, data_loader=job.loader(), noise_multiplier=0.0,
            max_grad_norm=CLIP, poisson_sampling=False,
        )  # fmt: skip
        job.load(model=model, optimizer=optimizer)
        losses, monitor = [], None
        if job.run is not None:
            monitor = gradkern.GradMonitor(model, optimizer, job.run)
            monitor.load_state_dict({"step": job.first})
            optimizer.attach_step_hook(lambda _: monitor.record(loss=losses[-1], after_clip=True))
        for x, y in loader:
            loss = nn.functional.mse_loss(private(x), y)
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        job.save(model=model, optimizer=optimizer)
        if monitor is not None:
            monitor.close()
        return model, losses

    state = tmp_path / "state"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain, losses = trained(Job(None))
        trained(Job(run, 0, 3, state))
        model, _ = trained(Job(run, 3, STEPS, state))
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)
    history = gradkern.History.open(run)
    assert history.names == tuple(name for name, _ in model.named_parameters())
    assert history.steps.tolist() == list(range(1, STEPS + 1))
    assert set(history.phase) == {"after_clip"}
    assert (history.total_norm <= CLIP * 1.001).all()  # the mean of gradients of at most this norm
    np.testing.assert_allclose(history.loss, losses, rtol=1e-6)
    np.testing.assert_allclose(history.lr, [LR] * STEPS)


@pytest.mark.parametrize("low", [False, True], ids=["fp32", "bf16"])
def test_two_models_of_a_gan(tmp_path, run, measured, assert_same_weights, low):
    def trained(job):
        torch.manual_seed(0)
        models = {"G": nn.Linear(4, 6), "D": nn.Linear(6, 1)}
        optimizers = {name: torch.optim.SGD(model.parameters(), lr=LR) for name, model in models.items()}
        monitor = job.monitor(models, optimizers)
        state = {**models, **{f"of_{name}": optimizer for name, optimizer in optimizers.items()}}
        job.load(**state)

        def step(name, loss):
            models[name].zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(models[name].parameters(), CLIP)
            optimizers[name].step()
            if monitor is not None:
                monitor.amend(monitor.step, part=name, loss=loss)

        for number in range(STEPS)[job.batches]:
            generator = torch.Generator().manual_seed(number)
            noise, real = torch.randn(8, 4, generator=generator), torch.randn(8, 6, generator=generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                loss = models["D"](models["G"](noise).detach()).mean() - models["D"](real).mean()
            step("D", loss)
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                loss = -models["D"](models["G"](noise)).mean()
            step("G", loss)
        job.save(**state)
        close()
        return nn.ModuleDict(models)

    with measured.watching():
        plain = trained(Job(None))
    trained(Job(run, 0, 3, tmp_path / "state"))
    ours = trained(Job(run, 3, STEPS, tmp_path / "state"))
    tolerance = 0.02 if low else 1e-5
    assert_same_weights(plain, ours, rtol=tolerance, atol=tolerance / 10)
    history = gradkern.History.open(run)
    assert history.steps.tolist() == list(range(1, STEPS + 1))
    columns = {name: history.norm[:, column] for column, name in enumerate(history.names)}
    for first, name in enumerate(("D", "G")):  # the order of their steps
        expected = [row[0] for row in measured[first::2]]
        np.testing.assert_allclose(columns[f"{name}.weight"], expected, rtol=tolerance)
        assert np.isfinite(history.extra[f"loss/{name}"]).all()


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
    assert len(gradkern.History.open(tmp_path / "runs" / "a2c")) == 4
    assert len(gradkern.History.open(tmp_path / "runs" / "gan")) == 3
    assert gradkern.History.open(tmp_path / "runs" / "private").steps.size
