"""Lightning's Trainer and manual optimization."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import gradkern
from tests.integrations.installed import framework, run_page

lightning = framework("lightning")


def module_class(*bases):
    class Module(*bases, lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
            self.losses = []

        def training_step(self, batch, index):
            (x,) = batch
            loss = (self.net(x) - x.sum(dim=1, keepdim=True)).square().mean()
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.05)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 / (done + 1))
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    return Module


RATES = [0.05, 0.05 / 2, 0.05 / 3, 0.05 / 4]


def loader():
    generator = torch.Generator().manual_seed(1)
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.randn(48, 6, generator=generator)), 4
    )


def fitted(folder, module, callbacks=(), resume=None, **more):
    more = {"max_epochs": 1, "gradient_clip_val": 0.5, "enable_checkpointing": False, **more}
    trainer = lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **more,
    )
    trainer.fit(module, loader(), ckpt_path=resume)
    return trainer


def callback(*args, **kwargs):
    from gradkern.integrations.lightning import GradkernCallback

    return GradkernCallback(*args, **kwargs)


def test_trainer(tmp_path, run, measured, assert_same_weights):
    plain, ours = module_class()(), module_class()()
    with measured.watching():
        fitted(tmp_path, plain, accumulate_grad_batches=3)
    fitted(tmp_path, ours, [callback(run)], accumulate_grad_batches=3)
    assert_same_weights(plain, ours, rtol=1e-6, atol=1e-7)
    history = gradkern.History.open(run)
    assert history.steps.tolist() == [1, 2, 3, 4]
    assert history.names == tuple(name for name, _ in ours.named_parameters())
    np.testing.assert_allclose(history.norm, np.array(measured), rtol=1e-5)
    np.testing.assert_allclose(history.total_norm, measured.totals, rtol=1e-5)
    assert set(history.phase) == {"before_clip"} and history.clipped.any()
    assert history.threshold.tolist() == [0.5] * 4
    np.testing.assert_allclose(history.loss, np.reshape(plain.losses, (4, 3)).mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(history.lr, RATES)


def test_without_clipping(tmp_path, run):
    module = module_class()()
    fitted(tmp_path, module, [callback(run)], gradient_clip_val=None)
    history = gradkern.History.open(run)
    assert history.steps.tolist() == list(range(1, 13))
    assert (history.total_norm > 0).all()
    np.testing.assert_allclose(history.loss, module.losses, rtol=1e-6)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-mixed"])
def test_precision_plugins(tmp_path, run, measured, precision):
    more = {"precision": precision}
    if precision == "16-mixed":  # Lightning's own choice of scaler is one for CUDA
        from lightning.pytorch.plugins import MixedPrecision

        def plugin():
            scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
            return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}
    else:

        def plugin():
            return more

    with measured.watching():
        fitted(tmp_path, module_class()(), **plugin())
    module = module_class()()
    fitted(tmp_path, module, [callback(run)], **plugin())
    history = gradkern.History.open(run)
    assert history.steps.tolist() == list(range(1, 13))
    np.testing.assert_allclose(history.total_norm, measured.totals, rtol=1e-2)
    np.testing.assert_allclose(history.loss, module.losses, rtol=1e-3)


def test_checkpoint_and_resume(tmp_path, run, measured, capsys):
    with measured.watching():
        fitted(tmp_path, module_class()(), max_epochs=2)
    first = fitted(tmp_path, module_class()(), [callback(run)], max_epochs=1)
    first.save_checkpoint(tmp_path / "one.ckpt")
    fitted(tmp_path, module_class()(), [callback(run)], max_epochs=2, resume=tmp_path / "one.ckpt")
    fitted(tmp_path, module_class()(), [callback(run)], max_epochs=2, resume=tmp_path / "one.ckpt")
    history = gradkern.History.open(run)
    assert history.steps.tolist() == list(range(1, 25))  # the second half is the last run's
    np.testing.assert_allclose(history.norm, np.array(measured), rtol=1e-4)
    lines = capsys.readouterr().err.splitlines()
    said = f"gradkern: recorded up to step {{}} in {run}; for findings: gradkern diagnose {run}"
    assert [lines.count(said.format(step)) for step in (12, 24)] == [1, 2]


class Adversarial(lightning.LightningModule):
    def __init__(self, limit, measured):
        super().__init__()
        self.limit, self.measured = limit, measured
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.generator, self.critic = nn.Linear(6, 6), nn.Linear(6, 1)

    def training_step(self, batch, index):
        (x,) = batch
        of_generator, of_critic = self.optimizers()
        loss = self.critic(self.generator(x).detach()).mean() - self.critic(x).mean()
        of_critic.zero_grad()
        self.manual_backward(loss)
        self.clip(of_critic)
        of_critic.step()
        other = -self.critic(self.generator(x)).mean()
        of_generator.zero_grad()
        self.manual_backward(other)
        self.clip(of_generator)
        of_generator.step()
        return {"loss": loss}

    def clip(self, optimizer):
        if self.limit is not None:
            self.clip_gradients(optimizer, gradient_clip_val=self.limit, gradient_clip_algorithm="norm")
        else:
            self.measured.add([p for group in optimizer.param_groups for p in group["params"]])

    def configure_optimizers(self):
        return [
            torch.optim.SGD(self.generator.parameters(), lr=0.05),
            torch.optim.SGD(self.critic.parameters(), lr=0.02),
        ]


@pytest.mark.parametrize("clip", [0.1, None])
def test_manual_optimization_with_two_optimizers(tmp_path, run, measured, clip):
    with measured.watching():
        fitted(tmp_path, Adversarial(clip, measured), gradient_clip_val=None)
    fitted(tmp_path, Adversarial(clip, measured), [callback(run)], gradient_clip_val=None)
    history = gradkern.History.open(run)
    assert history.steps.tolist() == list(range(1, 13))
    columns = {name: history.norm[:, column] for column, name in enumerate(history.names)}
    rows = measured[:24]  # the second run adds as many with its own measurement
    np.testing.assert_allclose(columns["critic.weight"], [row[0] for row in rows[0::2]], rtol=1e-4)
    np.testing.assert_allclose(columns["generator.weight"], [row[0] for row in rows[1::2]], rtol=1e-4)
    np.testing.assert_allclose(history.lr_groups, [[0.05, 0.02]] * 12)
    np.testing.assert_allclose(history.loss, measured.losses[0::2], rtol=1e-4, atol=1e-6)  # the critic's


@pytest.mark.parametrize("clipped_first", [True, False])
def test_manual_optimization_with_one_clip_of_two(tmp_path, run, clipped_first):
    rows, values = [], []

    class Two(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.automatic_optimization = False
            self.one, self.two = nn.Linear(6, 1), nn.Linear(6, 1)

        def training_step(self, batch, index):
            losses = [net(batch[0]).square().mean() for net in (self.one, self.two)]
            for optimizer, loss, clipped in zip(
                self.optimizers(), losses, (clipped_first, not clipped_first), strict=True
            ):
                optimizer.zero_grad()
                self.manual_backward(loss)
                values.append(loss.item())
                rows.append([p.grad.norm().item() for p in optimizer.param_groups[0]["params"]])
                if clipped:
                    self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
                optimizer.step()
            return {"loss": sum(losses)}

        def configure_optimizers(self):
            return [torch.optim.SGD(net.parameters(), lr=0.05) for net in (self.one, self.two)]

    fitted(tmp_path, Two(), [callback(run)], gradient_clip_val=None)
    history = gradkern.History.open(run)
    assert history.steps.tolist() == list(range(1, 13))
    assert history.names == ("one.weight", "one.bias", "two.weight", "two.bias")
    np.testing.assert_allclose(history.norm, np.reshape(rows, (12, 4)), rtol=1e-5)
    np.testing.assert_allclose(history.loss, np.reshape(values, (12, 2)).sum(axis=1), rtol=1e-6)


def test_every_third_step(tmp_path, run, measured):
    with measured.watching():
        fitted(tmp_path, module_class()())
    module = module_class()()
    fitted(tmp_path, module, [callback(run, every=3)])
    history = gradkern.History.open(run)
    assert history.steps.tolist() == [3, 6, 9, 12]
    np.testing.assert_allclose(history.norm, np.array(measured)[2::3], rtol=1e-4)
    np.testing.assert_allclose(history.loss, module.losses[2::3], rtol=1e-6)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_mixin(tmp_path, run, measured, assert_same_weights, algorithm):
    from gradkern.integrations.lightning import GradkernClipping

    class Module(module_class(GradkernClipping)):
        clipper_options = {"on_nonfinite": "zero"}  # noqa: RUF012

    plain, module = module_class()(), Module()
    clip = {"gradient_clip_algorithm": algorithm, "accumulate_grad_batches": 3}
    with measured.watching():
        fitted(tmp_path, plain, **clip)
    fitted(tmp_path, module, [callback(run)], **clip)
    assert_same_weights(plain, module)
    history = gradkern.History.open(run)
    assert history.steps.tolist() == [1, 2, 3, 4]
    assert history.names == tuple(name for name, _ in module.named_parameters())
    if algorithm == "norm":
        np.testing.assert_allclose(history.norm, np.array(measured), rtol=1e-5)
        assert history.threshold.tolist() == [0.5] * 4 and history.clipped.any()
        np.testing.assert_allclose(module.grad_stats.total_norm.item(), measured.totals[-1], rtol=1e-5)
    np.testing.assert_allclose(history.loss, np.reshape(plain.losses, (4, 3)).mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(history.lr, RATES)


class Measured(module_class()):
    """A module that notes its gradients' norms before it clips."""

    def __init__(self):
        super().__init__()
        self.totals = []

    def note(self):
        norms = torch.stack([p.grad.norm() for p in self.parameters()])
        self.totals.append(norms.norm().item())

    def clamp(self):
        for p in self.parameters():
            p.grad.clamp_(-0.01, 0.01)


@pytest.mark.parametrize("how", ["torch", "gradkern", "policy", "by hand"])
def test_module_that_clips_in_its_hook(tmp_path, run, how):
    class Module(Measured):
        def configure_gradient_clipping(self, optimizer, **_):
            self.note()
            if how == "policy":
                clipper = gradkern.GradClipper(self, policy=gradkern.policies.AutoClip(10.0))
                clipper.clip_()
            elif how == "by hand":
                self.clamp()
            else:
                owner = gradkern if how == "gradkern" else torch.nn.utils
                owner.clip_grad_norm_(self.parameters(), 0.01)

    module = Module()
    fitted(tmp_path, module, [callback(run)], gradient_clip_val=None)
    history = gradkern.History.open(run)
    assert history.steps.tolist() == list(range(1, 13)) and set(history.phase) == {"before_clip"}
    np.testing.assert_allclose(history.total_norm, module.totals, rtol=1e-5)
    np.testing.assert_allclose(history.loss, module.losses, rtol=1e-6)


def test_module_that_clips_after_backward(tmp_path, run):
    class Module(Measured):
        def on_after_backward(self):
            self.note()
            torch.nn.utils.clip_grad_norm_(self.parameters(), 0.01)

    module = Module()
    fitted(tmp_path, module, [callback(run)], gradient_clip_val=None)
    history = gradkern.History.open(run)
    assert history.steps.tolist() == list(range(1, 13)) and set(history.phase) == {"before_clip"}
    np.testing.assert_allclose(history.total_norm, module.totals, rtol=1e-5)
    np.testing.assert_allclose(history.threshold, 0.01)
    np.testing.assert_allclose(history.loss, module.losses, rtol=1e-6)


@pytest.mark.parametrize("manual", [True, False])
def test_module_that_clips_by_hand(tmp_path, run, manual):
    class Module(Measured):
        def on_after_backward(self):
            self.clamp()

        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            if manual:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

    module = Module()
    module.automatic_optimization = not manual
    with pytest.warns(gradkern.GradkernWarning, match="changes its gradients by hand") as said:
        fitted(tmp_path, module, [callback(run)], gradient_clip_val=None)
    assert sum("by hand" in str(one.message) for one in said) == 1
    history = gradkern.History.open(run)
    assert history.steps.tolist() == list(range(1, 13)) and set(history.phase) == {"measured"}


def test_manual_optimization_clipped_by_gradkern(tmp_path, run):
    class Module(Measured):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.note()
            gradkern.clip_grad_norm_(self.parameters(), 0.01)
            optimizer.step()
            return loss

    module = Module()
    fitted(tmp_path, module, [callback(run)], gradient_clip_val=None)
    history = gradkern.History.open(run)
    assert set(history.phase) == {"before_clip"} and set(history.threshold) == {0.01}
    np.testing.assert_allclose(history.total_norm, module.totals, rtol=1e-5)


@pytest.mark.parametrize("options", ["policy", "groups", "max_norm"])
def test_mixin_with_its_own_limit(tmp_path, run, options):
    from gradkern.integrations.lightning import GradkernClipping

    limits = {
        "policy": gradkern.policies.AutoClip(10.0),
        "groups": {"biases": ("*.bias", 0.01), "others": ("*", gradkern.policies.ZClip())},
        "max_norm": 0.01,
    }

    class Module(module_class(GradkernClipping)):
        clipper_options = {options: limits[options]}  # noqa: RUF012

    module = Module()
    fitted(tmp_path, module, [callback(run)], gradient_clip_val=None)
    history = gradkern.History.open(run)
    assert history.steps.tolist() == list(range(1, 13)) and set(history.phase) == {"before_clip"}
    assert history.clipped.any() and module.grad_stats is not None
    with pytest.warns(gradkern.GradkernWarning, match="gradient_clip_val is ignored"):
        fitted(tmp_path, Module(), gradient_clip_val=0.5, max_steps=1)


def test_loss_of_an_incomplete_step(tmp_path, run):
    module = module_class()()
    fitted(tmp_path, module, [callback(run)], accumulate_grad_batches=5)
    history = gradkern.History.open(run)
    means = [np.mean(module.losses[first : first + 5]) for first in (0, 5, 10)]
    np.testing.assert_allclose(history.loss, means, rtol=1e-5)


def test_step_that_a_scaler_skips(tmp_path, run):
    from lightning.pytorch.plugins import MixedPrecision

    class Module(module_class()):
        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            return loss * float("inf") if index == 2 else loss

    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    fitted(tmp_path, Module(), [callback(run)], plugins=[plugin])
    history = gradkern.History.open(run)
    assert history.steps.tolist() == list(range(1, 13))
    assert history.skipped.tolist() == [step == 3 for step in range(1, 13)]


@pytest.mark.parametrize("limit", [0.5, None])
def test_pytorch_lightning(tmp_path, run, monkeypatch, limit):
    package = framework("pytorch_lightning")
    monkeypatch.setattr("tests.integrations.test_lightning.lightning", package, raising=True)
    module = module_class()()
    assert isinstance(module, package.LightningModule)
    fitted(tmp_path, module, [callback(run)], gradient_clip_val=limit)
    history = gradkern.History.open(run)
    assert history.steps.tolist() == list(range(1, 13)) and set(history.phase) == {"before_clip"}
    np.testing.assert_allclose(history.loss, module.losses, rtol=1e-6)


def test_two_callbacks(tmp_path, run):
    other = tmp_path / "other"
    first = fitted(tmp_path, module_class()(), [callback(run), callback(other)])
    first.save_checkpoint(tmp_path / "one.ckpt")
    more = {"max_epochs": 2, "resume": tmp_path / "one.ckpt"}
    fitted(tmp_path, module_class()(), [callback(run), callback(tmp_path / "third")], **more)
    steps = [gradkern.History.open(folder).steps.tolist() for folder in (run, other, tmp_path / "third")]
    assert steps == [list(range(1, 25)), list(range(1, 13)), list(range(13, 25))]


def test_misspelt_option(run):
    with pytest.raises(TypeError, match=r"\[GradkernCallback\] evry: .*did you mean 'every'"):
        callback(run, evry=2)


def test_the_page(tmp_path):
    run_page("lightning.md")
    history = gradkern.History.open(tmp_path / "runs" / "first")
    assert len(history) == 8
    assert all(finding.severity for finding in gradkern.diagnose(history))
    assert len(gradkern.History.open(tmp_path / "runs" / "fabric")) == 8
    assert gradkern.History.open(tmp_path / "runs" / "policy").clipped.any()
