"""Frameworks that need no class of ours: `patch_torch(monitor)`, as docs/frameworks says for each.

A recipe trains a small model with and without a monitor: weights agree, norms are those that a float64
measurement at the clip gives, and rows, learning rates and losses are what the framework used.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import gradkern
from tests.integrations.installed import framework, run_page, without_torchvision

LR, CLIP, STEPS = 0.05, 0.1, 5
OPEN: list[gradkern.GradMonitor] = []


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))


def data(count=STEPS, size=8):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count * size, 6, generator=generator)
    return torch.utils.data.TensorDataset(x, x.sum(dim=1, keepdim=True))


def batches(size=8):
    return torch.utils.data.DataLoader(data(size=size), size)


def attached(run, model, optimizer):
    """A monitor that gets the model's clips; None where nothing is to be recorded."""
    if run is None:
        return None
    monitor = gradkern.GradMonitor(model, optimizer, run)
    gradkern.patch_torch(monitor)
    OPEN.append(monitor)
    return monitor


def close():
    """Write what is left; some frameworks keep models and their monitors alive."""
    gradkern.unpatch_torch()
    while OPEN:
        OPEN.pop().close()


def timm(run):
    utils = without_torchvision("timm", "utils.cuda")
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    attached(run, model, optimizer)
    scaler = utils.NativeScaler(device="cpu")
    scaler._scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    for x, y in batches():
        loss = nn.functional.mse_loss(model(x), y)
        scaler(loss, optimizer, clip_grad=CLIP, parameters=model.parameters())
        optimizer.zero_grad()
    return model


def ignite(run):
    engine = framework("ignite.engine")
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    monitor = attached(run, model, optimizer)

    def update(trainer, batch):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(batch[0]), batch[1])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return loss.item()

    trainer = engine.Engine(update)
    if monitor is not None:

        @trainer.on(engine.Events.ITERATION_COMPLETED)
        def add_loss(trainer):
            monitor.amend(trainer.state.iteration, loss=trainer.state.output)

    trainer.run(batches())
    return model


def skorch(run):
    package = framework("skorch")
    callbacks = framework("skorch.callbacks")

    class AddLoss(callbacks.Callback):
        def on_batch_end(self, net, batch=None, training=False, loss=None, **kwargs):
            if training and run is not None:
                monitor.amend(monitor.step, loss=loss)

    net = package.NeuralNetRegressor(
        network(), optimizer=torch.optim.SGD, lr=LR, max_epochs=1, batch_size=8, train_split=None, verbose=0,
        callbacks=[callbacks.GradientNormClipping(CLIP), AddLoss()],
    )  # fmt: skip
    net.initialize()
    monitor = attached(run, net.module_, net.optimizer_)
    x, y = data().tensors
    net.partial_fit(x, y)  # `fit` would make another module
    return net.module_


def fastai(run):
    basics = framework("fastai.basics")
    training = framework("fastai.callback.training")
    loader = basics.DataLoader(data(), bs=8)
    learn = basics.Learner(
        basics.DataLoaders(loader, loader), network(), loss_func=nn.functional.mse_loss, lr=LR,
        opt_func=basics.SGD, cbs=training.GradientClip(CLIP), train_bn=False,
    )  # fmt: skip
    learn.create_opt()
    monitor = attached(run, learn.model, learn.opt)

    class AddLoss(basics.Callback):
        def after_batch(self):
            if self.training and monitor is not None:
                monitor.record(loss=self.loss)

    with learn.no_bar(), learn.no_logging():
        learn.fit(1, cbs=AddLoss())
    return learn.model


def litgpt(run):
    lightning = framework("lightning")
    package = framework("litgpt.model")
    torch.manual_seed(0)
    config = framework("litgpt.config").Config(
        block_size=8, vocab_size=16, padded_vocab_size=16, n_layer=1, n_head=2, n_embd=8, intermediate_size=16
    )
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    bare = package.GPT(config)
    model, optimizer = fabric.setup(bare, torch.optim.SGD(bare.parameters(), lr=LR))
    monitor = attached(run, bare, optimizer)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        words = torch.randint(0, 16, (4, 8), generator=generator)
        loss = nn.functional.cross_entropy(model(words).flatten(0, 1), words.flatten())
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=CLIP)
        if monitor is not None:
            monitor.record(loss=loss)
        optimizer.step()
        optimizer.zero_grad()
    return bare


def torchao(run):
    optim = framework("torchao.optim")
    return _loop(run, lambda params: optim.AdamW8bit(params, lr=LR, eps=1e-3))


def compiled(run):
    return _loop(run, lambda params: torch.optim.SGD(params, lr=LR), wrap=torch.compile)


def _loop(run, optimizer_of, wrap=None):
    bare = network()
    model = bare if wrap is None else wrap(bare, backend="eager")
    optimizer = optimizer_of(model.parameters())
    monitor = attached(run, model, optimizer)
    for x, y in batches():
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        if monitor is not None:
            monitor.record(loss=loss)
        optimizer.step()
        optimizer.zero_grad()
    return bare


@pytest.fixture
def _eager():
    """torchao's optimizers compile their steps, which takes a C++ compiler and half a minute."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.usefixtures("_eager")
@pytest.mark.parametrize("recipe", [timm, ignite, skorch, fastai, litgpt, torchao], ids=lambda f: f.__name__)
def test_recipe(run, measured, assert_same_weights, recipe):
    check(run, measured, assert_same_weights, recipe)


def test_compiled_model(run, measured, assert_same_weights):
    check(run, measured, assert_same_weights, compiled)


def check(run, measured, assert_same_weights, recipe):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with measured.watching():
            plain = recipe(None)
        model = recipe(run)
    close()
    assert_same_weights(plain, model)
    history = gradkern.History.open(run)
    assert history.steps.tolist() == list(range(1, STEPS + 1))
    assert history.names == tuple(name for name, _ in model.named_parameters())
    if recipe is not skorch:  # which has torch's function from before it was watched
        np.testing.assert_allclose(history.norm, np.array(measured), rtol=1e-4, atol=1e-8)
    assert set(history.phase) == {"before_clip"} and history.clipped.all()
    assert history.threshold.tolist() == [CLIP] * STEPS
    np.testing.assert_allclose(history.lr, [LR] * STEPS)
    assert recipe is timm or history.has_loss.all()


def test_stable_baselines3(run, measured, assert_same_weights):
    sb3 = framework("stable_baselines3")

    def trained(folder=None):
        model = sb3.A2C(
            "MlpPolicy", "CartPole-v1", n_steps=5, seed=0, device="cpu", max_grad_norm=CLIP,
            policy_kwargs={"net_arch": [8]},
        )  # fmt: skip
        attached(folder, model.policy, model.policy.optimizer)
        model.learn(30)
        return model.policy

    with measured.watching():
        plain = trained()
    policy = trained(run)
    close()
    assert_same_weights(plain, policy, rtol=1e-4, atol=1e-6)
    history = gradkern.History.open(run)
    np.testing.assert_allclose(history.norm, np.array(measured), rtol=1e-3, atol=1e-6)
    assert len(history) == 6 and (history.lr > 0).all() and history.clipped.any()


def test_opacus(run):
    opacus = framework("opacus")

    def trained(folder=None):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            private, optimizer, loader = opacus.PrivacyEngine().make_private(
                module=model, optimizer=optimizer, data_loader=batches(), noise_multiplier=0.0,
                max_grad_norm=CLIP, poisson_sampling=False,
            )  # fmt: skip
        losses, monitor = [], None
        if folder is not None:
            monitor = gradkern.GradMonitor(model, optimizer, folder)
            optimizer.attach_step_hook(lambda _: monitor.record(loss=losses[-1], after_clip=True))
        for x, y in loader:
            loss = nn.functional.mse_loss(private(x), y)
            losses.append(loss.item())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if monitor is not None:
            monitor.close()
        return model, losses

    plain, _ = trained()
    model, losses = trained(run)
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    history = gradkern.History.open(run)
    assert history.names == tuple(name for name, _ in model.named_parameters())
    assert history.steps.tolist() == list(range(1, STEPS + 1))
    assert set(history.phase) == {"after_clip"}
    assert (history.total_norm <= CLIP * 1.001).all()  # the mean of gradients of at most this norm
    np.testing.assert_allclose(history.loss, losses, rtol=1e-6)
    np.testing.assert_allclose(history.lr, [LR] * STEPS)


def test_two_models_of_a_gan(run):
    torch.manual_seed(0)
    models = {"G": nn.Linear(4, 6), "D": nn.Linear(6, 1)}
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=LR) for name, model in models.items()}
    norms = {"G": [], "D": []}

    def step(name, loss):
        models[name].zero_grad()
        loss.backward()
        norms[name].append(models[name].weight.grad.norm().item())
        torch.nn.utils.clip_grad_norm_(models[name].parameters(), CLIP)
        optimizers[name].step()
        monitor.amend(monitor.step, part=name, loss=loss)

    with gradkern.GradMonitor(models, optimizers, run) as monitor, gradkern.patched_torch(monitor):
        for _ in range(STEPS):
            noise, real = torch.randn(8, 4), torch.randn(8, 6)
            step("D", models["D"](models["G"](noise).detach()).mean() - models["D"](real).mean())
            step("G", -models["D"](models["G"](noise)).mean())
    history = gradkern.History.open(run)
    assert history.steps.tolist() == list(range(1, STEPS + 1))
    columns = {name: history.norm[:, column] for column, name in enumerate(history.names)}
    for name in models:
        np.testing.assert_allclose(columns[f"{name}.weight"], norms[name], rtol=1e-5)
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
