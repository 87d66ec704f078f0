"""Likely mistakes give one warning that says what to do; correct loops give none."""

from __future__ import annotations

import contextlib
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import gradkern
from gradkern import GradkernWarning, GradMonitor
from tests.support.loops import small_model


@contextlib.contextmanager
def told(*messages):
    """Exactly these warnings, at a line of this file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    found = [w for w in caught if issubclass(w.category, GradkernWarning)]
    assert len(found) == len(messages), [str(w.message) for w in found]
    for warning, message in zip(found, messages):
        assert message in str(warning.message)
        assert Path(warning.filename) == Path(__file__)


class Loop:
    def __init__(self, folder, steps=8, **options):
        self.model = small_model()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.monitor = GradMonitor(self.model, self.optimizer, folder, **options)
        self.generator = torch.Generator().manual_seed(0)
        self.steps = steps

    def backward(self, scale=1.0):
        x = torch.randn(5, 6, generator=self.generator)
        (self.model(x).square().mean() * scale).backward()

    def run(self, body):
        for _ in range(self.steps):
            body()
            self.optimizer.zero_grad()
        self.monitor.close()


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("measured", [False, True])
def test_a_loop_that_is_right(tmp_path, measured, keep):
    loop = Loop(tmp_path, steps=30, update_every=1)
    clipper = gradkern.GradClipper(loop.model, 0.5)

    def body():
        loop.backward()
        loop.monitor.record(None if measured else clipper.clip_())
        loop.optimizer.step()
        loop.optimizer.zero_grad(set_to_none=not keep)

    with told():
        loop.run(body)


def test_nothing_has_a_gradient(tmp_path):
    loop = Loop(tmp_path)
    with told("[GradMonitor.record] no parameter has a gradient, so there is nothing to record"):
        loop.run(loop.monitor.record)


def test_an_optimizer_within_backward(tmp_path):
    model = small_model()
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def step_now(param):
        optimizers[param].step()
        optimizers[param].zero_grad()

    for param in model.parameters():
        param.register_post_accumulate_grad_hook(step_now)
    with told("an optimizer that steps within backward"), GradMonitor(model, None, tmp_path) as monitor:
        for _ in range(3):
            model(torch.ones(2, 6)).sum().backward()
            monitor.record()


def test_a_frozen_model_has_no_gradient_by_right(tmp_path):
    model = small_model().requires_grad_(False)
    with told(), GradMonitor(model, None, tmp_path) as monitor:
        monitor.record()


@pytest.mark.parametrize("keep", [False, True])
def test_recorded_after_the_step(tmp_path, keep):
    loop = Loop(tmp_path)

    def body():
        loop.backward()
        loop.optimizer.step()
        loop.monitor.record()
        loop.optimizer.zero_grad(set_to_none=not keep)

    with told("[GradMonitor.record] an optimizer has stepped with these gradients already"):
        loop.run(body)


def test_recorded_in_a_closure_or_a_hook(tmp_path):
    loop = Loop(tmp_path)

    def closure():
        loop.optimizer.zero_grad()
        loop.backward()
        loop.monitor.record()
        return torch.zeros(())

    with told():
        loop.run(lambda: loop.optimizer.step(closure))
    for number, when in enumerate(("pre", "post")):
        other = Loop(tmp_path / str(number))
        getattr(other.optimizer, f"register_step_{when}_hook")(lambda *_, other=other: other.monitor.record())

        def body(other=other):
            other.backward()
            other.optimizer.step()

        with told():
            other.run(body)


def test_recorded_at_every_micro_batch(tmp_path):
    loop = Loop(tmp_path, steps=6)

    def body():
        for _ in range(4):
            loop.backward()
            loop.monitor.record()
        loop.optimizer.step()

    with told("called several times for each step of the optimizer"):
        loop.run(body)


def test_steps_that_a_scaler_skips_are_no_micro_batches(tmp_path):
    loop = Loop(tmp_path, steps=40)
    count = iter(range(40))

    def body():
        loop.backward()
        loop.monitor.record()
        if next(count) not in (0, 1, 2, 20, 21):
            loop.optimizer.step()

    with told():
        loop.run(body)


@pytest.mark.parametrize("scale", [2.0**16, 2.0**7])
@pytest.mark.parametrize("measured", [False, True])
def test_gradients_that_carry_a_loss_scale(tmp_path, scale, measured):
    loop = Loop(tmp_path)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    clipper = gradkern.GradClipper(loop.model, 1e9)

    def body():
        loop.backward(scaler.scale(torch.tensor(1.0)))
        loop.monitor.record(None if measured else clipper.clip_())
        scaler.step(loop.optimizer)
        scaler.update()

    with told(f"divided by {scale:g}, an exact power of two"):
        loop.run(body)


def test_a_fused_optimizer_that_divides_by_the_scale(tmp_path):
    loop = Loop(tmp_path)
    loop.monitor.close()
    loop.optimizer = torch.optim.SGD(loop.model.parameters(), lr=0.01, fused=True)
    loop.monitor = GradMonitor(loop.model, loop.optimizer, tmp_path)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def body():
        loop.backward(scaler.scale(torch.tensor(1.0)))
        loop.monitor.record()
        scaler.step(loop.optimizer)
        scaler.update()

    with told("divided by 1024"):
        loop.run(body)


@pytest.mark.parametrize("how", ["unscale_", "clip_", "inv_scale", "mean of two"])
def test_gradients_without_a_scale(tmp_path, how):
    loop = Loop(tmp_path, update_every=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    clipper = gradkern.GradClipper(loop.model, 0.1)

    def body():
        loop.backward(1.0 if how == "mean of two" else scaler.scale(torch.tensor(1.0)))
        if how == "mean of two":
            loop.monitor.record()
            for param in loop.model.parameters():
                param.grad.div_(2)
            loop.optimizer.step()
            return
        if how == "unscale_":
            scaler.unscale_(loop.optimizer)
            loop.monitor.record(clipper.clip_())
        elif how == "clip_":
            loop.monitor.record(clipper.clip_(scaler=scaler, optimizer=loop.optimizer))
        else:
            loop.monitor.record(inv_scale=1 / scaler.get_scale())
        scaler.step(loop.optimizer)
        scaler.update()

    with told():
        loop.run(body)


def test_parameters_that_were_replaced_after_the_optimizer_was_built(tmp_path):
    loop = Loop(tmp_path, update_every=2)
    loop.model[0] = nn.Linear(6, 8)

    def body():
        loop.backward()
        loop.monitor.record()
        loop.optimizer.step()

    with told("[GradMonitor] 0.weight, 0.bias: trainable and with gradients, but in no optimizer"):
        loop.run(body)


@pytest.mark.parametrize("how", ["another optimizer", "by hand", "data", "frozen"])
def test_parameters_that_the_optimizer_does_not_have_by_right(tmp_path, how):
    loop = Loop(tmp_path, update_every=1)
    loop.model[0] = nn.Linear(6, 8).requires_grad_(how != "frozen")
    other = torch.optim.SGD(loop.model[0].parameters(), lr=0.1) if how == "another optimizer" else None

    def body():
        loop.backward()
        loop.monitor.record()
        loop.optimizer.step()
        if other is not None:
            other.step()
        elif how == "data":  # as optimizers of old write, which no version shows
            for param in loop.model[0].parameters():
                param.data.add_(param.grad, alpha=-0.1)
        elif how == "by hand":
            with torch.no_grad():
                loop.model[0].weight.sub_(loop.model[0].weight.grad)
                loop.model[0].bias.sub_(loop.model[0].bias.grad)
        loop.model.zero_grad()

    with told():
        loop.run(body)


def plateau(folder, record, steps=40):
    """Totals of a loop whose gradients `record` clips, or not."""
    loop = Loop(folder, steps=steps)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        def body():
            loop.backward(100.0)
            record(loop)
            loop.optimizer.step()

        loop.run(body)
    return [str(w.message) for w in caught if w.category is GradkernWarning]


def test_norms_that_something_else_has_clipped(tmp_path):
    def clipped(loop):
        torch.nn.utils.clip_grad_norm_(loop.model.parameters(), 0.5)
        loop.monitor.record()

    (message,) = plateau(tmp_path, clipped)
    assert "the total norm has been 0.5 for 20 recorded steps" in message


def test_norms_that_vary_or_are_said_to_be_clipped(tmp_path):
    def said(loop):
        torch.nn.utils.clip_grad_norm_(loop.model.parameters(), 0.5)
        loop.monitor.record(after_clip=True)

    def constant(loop):
        for param in loop.model.parameters():
            param.grad = torch.ones_like(param)
        loop.monitor.record()

    def drifting(loop):  # a slow training's own norm falls by less than a plateau's tolerance a step
        scale = loop.scale = getattr(loop, "scale", 1.0) * (1 - 1e-5)
        grads = [torch.ones(p.shape) for p in loop.model.parameters()]
        for param, grad in zip(loop.model.parameters(), grads):
            param.grad = grad * scale
        loop.monitor.record()

    records = (said, constant, drifting, lambda loop: loop.monitor.record())
    for number, record in enumerate(records):
        assert plateau(tmp_path / str(number), record) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_that_were_clipped_in_16_bits(tmp_path, dtype):
    """torch rounds the norm, the factor and the product: the clipped norm varies about the threshold."""
    clip = torch.nn.utils.clip_grad_norm_
    for number, threshold in enumerate((1.0, 0.1, 0.5)):
        (message,) = in_16_bits(tmp_path / str(number), dtype, lambda ps, t=threshold: clip(ps, t), 300.0)
        assert f"the total norm has been about {threshold:g} for 20 recorded steps" in message
    (message,) = in_16_bits(tmp_path / "ours", dtype, lambda ps: gradkern.clip_grad_norm_(ps, 1.0), 300.0)
    assert "the total norm has been" in message


@pytest.mark.parametrize("batch", [8, 1024])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_norms_in_16_bits_that_were_not_clipped(tmp_path, batch, seed):
    assert in_16_bits(tmp_path / "run", torch.bfloat16, lambda ps: None, 1.0, batch, seed) == []


def test_slow_norms_in_16_bits_beside_a_usual_threshold(tmp_path):
    """All layers vary as little as the total does: a training's own norm."""
    generator = torch.Generator().manual_seed(0)

    def near_one(params):
        params = list(params)
        for p in params:
            noise = 1 + 5e-3 * torch.randn((), generator=generator)
            p.grad = (torch.ones(p.shape) * noise / sum(q.numel() for q in params) ** 0.5).bfloat16()

    assert in_16_bits(tmp_path / "run", torch.bfloat16, near_one, 1.0) == []


def in_16_bits(folder, dtype, clip, scale, batch=8, seed=0):
    """The warnings of a run whose gradients `clip` changes before they are recorded."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16)).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with GradMonitor(model, optimizer, folder) as monitor:
            for _ in range(40):
                (model(torch.randn(batch, 16, dtype=dtype)).square().mean() * scale).backward()
                clip(model.parameters())
                monitor.record()
                optimizer.step()
                optimizer.zero_grad()
    return [str(w.message) for w in caught if w.category is GradkernWarning]


def test_gradients_that_are_zero_at_every_step(tmp_path):
    """As after zero_grad(set_to_none=False) before the clip. The warning comes after 20 records, from the
    host's copy."""

    def cleared(loop):
        loop.optimizer.zero_grad(set_to_none=False)
        loop.monitor.record()

    def now_and_then(loop):
        loop.count = getattr(loop, "count", 0) + 1
        if loop.count % 15:
            loop.optimizer.zero_grad(set_to_none=False)
        loop.monitor.record()

    (message,) = plateau(tmp_path / "cleared", cleared)
    assert "all gradients have been exactly zero for 20 recorded steps" in message
    assert plateau(tmp_path / "now and then", now_and_then) == []


def test_gradients_clipped_after_the_step(tmp_path):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    clipper = gradkern.GradClipper(model, 0.5)

    def body(late):
        optimizer.zero_grad()
        model(torch.ones(2, 6)).sum().backward()
        if late:
            optimizer.step()
        clipper.clip_()
        if not late:
            optimizer.step()

    with told():
        for _ in range(3):
            body(late=False)
    with told("[GradClipper.clip_] an optimizer has stepped with these gradients already"):
        for _ in range(3):
            body(late=True)
    optimizer.zero_grad()
    with told("[GradClipper.clip_] no parameter has a gradient, so there is nothing to clip"):
        for _ in range(3):
            clipper.clip_()


def test_warnings_are_logged_too(tmp_path, caplog):
    """Warnings about mistakes as well as warnings about problems while recording."""
    with GradMonitor(small_model(), None, tmp_path / "run") as monitor, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        monitor.record()
        assert monitor.flush()
        shutil.rmtree(tmp_path / "run")
        monitor.record()
        assert not monitor.flush()
    texts = [record.getMessage() for record in caplog.records if record.name == "gradkern"]
    assert any("no parameter has a gradient" in text for text in texts)
    assert any("deleted or replaced" in text for text in texts)


def test_logging_prints_nothing_by_itself(run_python):
    code = (
        "from gradkern._util.warning import warn; import warnings; warnings.simplefilter('ignore'); warn('x')"
    )
    done = run_python(code)
    assert (done.stdout, done.stderr) == ("", "")
