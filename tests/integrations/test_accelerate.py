"""Accelerate: wrapped optimizers, accumulation, checkpoints."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch import nn

import gradkern
from tests.integrations.installed import framework, run_page

accelerate = framework("accelerate")


@pytest.fixture(autouse=True)
def _fresh_state():
    accelerate.state.AcceleratorState._reset_state(True)
    yield
    accelerate.state.AcceleratorState._reset_state(True)


def batches():
    generator = torch.Generator().manual_seed(1)
    return torch.utils.data.DataLoader(torch.randn(48, 6, generator=generator), batch_size=4)


def trained(run_dir=None, guarded=True, mixed_precision="no", checkpoint=None, resume=None):
    from gradkern.integrations.accelerate import monitored

    torch.manual_seed(0)
    accelerator = accelerate.Accelerator(
        cpu=True, gradient_accumulation_steps=3, mixed_precision=mixed_precision
    )
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model, optimizer, loader = accelerator.prepare(model, optimizer, batches())
    losses = []

    def loop(monitor):
        for index, x in enumerate(loader):
            optimizer.optimizer.param_groups[0]["lr"] = 0.05 / (index // 3 + 1)
            with accelerator.accumulate(model):
                loss = (model(x) - x.sum(dim=1, keepdim=True)).square().mean()
                accelerator.backward(loss)
                if accelerator.sync_gradients or not guarded:
                    accelerator.clip_grad_norm_(model.parameters(), 0.5 if guarded else 1e9)
                losses.append(loss.item())
                if accelerator.sync_gradients and monitor is not None:
                    monitor.record(loss=np.mean(losses[-3:]))
                optimizer.step()
                optimizer.zero_grad()

    recording = contextlib.nullcontext()
    if run_dir is not None:
        recording = monitored(accelerator, model, optimizer, run_dir)
    with recording as monitor:
        if resume is not None:
            accelerator.load_state(str(resume))
        loop(monitor)
        if checkpoint is not None:
            accelerator.save_state(str(checkpoint))
    return accelerator.unwrap_model(model)


def test_accelerator(run, measured, assert_same_weights):
    with measured.watching():
        plain = trained()
    model = trained(run)
    assert_same_weights(plain, model, rtol=1e-6, atol=1e-7)
    history = gradkern.History.open(run)
    assert history.steps.tolist() == [1, 2, 3, 4]
    assert history.names == tuple(name for name, _ in model.named_parameters())
    np.testing.assert_allclose(history.norm, np.array(measured), rtol=1e-5)
    np.testing.assert_allclose(history.loss, measured.losses_of_steps(3), rtol=1e-5)
    np.testing.assert_allclose(history.lr, [0.05 / step for step in (1, 2, 3, 4)])
    assert history.clipped.any() and set(history.phase) == {"before_clip"}


def test_clips_between_synchronisations_are_no_steps(run):
    trained(run, guarded=False)
    assert gradkern.History.open(run).steps.tolist() == [1, 2, 3, 4]


def test_bf16(run, measured):
    with measured.watching():
        trained(mixed_precision="bf16")
    trained(run, mixed_precision="bf16")
    history = gradkern.History.open(run)
    assert history.steps.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(history.norm, np.array(measured), rtol=0.02)
    np.testing.assert_allclose(history.loss, measured.losses_of_steps(3), rtol=0.02)


def test_resumed(tmp_path, run, measured, capsys):
    """Twice from the same checkpoint: the second time the rows after it are replaced."""
    with measured.watching():
        trained(checkpoint=tmp_path / "plain")
        trained(resume=tmp_path / "plain")
    state = tmp_path / "state"
    trained(run, checkpoint=state)
    for _ in range(2):
        trained(run, resume=state)
    history = gradkern.History.open(run)
    assert history.steps.tolist() == list(range(1, 9))
    np.testing.assert_allclose(history.norm, np.array(measured), rtol=1e-5)
    line = f"gradkern: recorded up to step 8 in {run}; for findings: gradkern diagnose {run}"
    assert capsys.readouterr().err.splitlines().count(line) == 2


def resumable():
    """An accelerator with a prepared model and optimizer, and a function that trains some steps."""
    torch.manual_seed(0)
    accelerator = accelerate.Accelerator(cpu=True)
    model = nn.Linear(6, 1)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.05))

    def train(steps):
        for _ in range(steps):
            accelerator.backward(model(torch.ones(2, 6)).square().mean())
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return accelerator, model, optimizer, train


def steps_of(run):
    return gradkern.History.open(run).steps.tolist()


@pytest.mark.parametrize("earlier", [0, 2])
def test_a_checkpoint_from_before_gradkern(tmp_path, run, earlier):
    from gradkern.integrations.accelerate import monitored

    accelerator, model, optimizer, train = resumable()
    train(1)
    accelerator.save_state(str(tmp_path / "state"))
    saved = model.weight.detach().clone()
    if earlier:
        with monitored(accelerator, model, optimizer, run):
            train(earlier)
    train(1)
    with (
        monitored(accelerator, model, optimizer, run),
        pytest.warns(gradkern.GradkernWarning, match=rf"recorded as step {earlier + 1}\.") as caught,
    ):
        accelerator.load_state(str(tmp_path / "state"))
        assert torch.equal(model.weight, saved)
        train(2)
    assert len(caught) == 1
    assert steps_of(run) == list(range(1, earlier + 3))


@pytest.mark.filterwarnings("error::gradkern.GradkernWarning")
def test_loaded_before_the_block(tmp_path, run):
    from gradkern.integrations.accelerate import monitored

    accelerator, model, optimizer, train = resumable()
    with monitored(accelerator, model, optimizer, run):
        train(2)
        accelerator.save_state(str(tmp_path / "state"))
        saved = model.weight.detach().clone()
        train(3)
    accelerator.load_state(str(tmp_path / "state"))
    assert torch.equal(model.weight, saved)
    with monitored(accelerator, model, optimizer, run, resumed_from=tmp_path / "state") as monitor:
        assert monitor.step == 2
        train(1)
    assert steps_of(run) == [1, 2, 3]


@pytest.mark.filterwarnings("error::gradkern.GradkernWarning")
def test_a_second_block_on_the_same_accelerator(tmp_path):
    from gradkern.integrations.accelerate import monitored

    accelerator, model, optimizer, train = resumable()
    for name, steps in (("one", 3), ("two", 1)):
        with monitored(accelerator, model, optimizer, tmp_path / name) as monitor:
            train(steps)
            accelerator.save_state(str(tmp_path / f"state of {name}"))
            train(1)
            accelerator.load_state(str(tmp_path / f"state of {name}"))
            assert monitor.step == steps
            train(2)
        assert steps_of(tmp_path / name) == list(range(1, steps + 3))
    accelerator.save_state(str(tmp_path / "after"))
    assert not list((tmp_path / "after").glob("gradkern*"))
    accelerator.load_state(str(tmp_path / "state of one"))


def test_resumed_from_a_missing_folder(tmp_path, run):
    from gradkern.integrations.accelerate import monitored

    accelerator, model, optimizer, _ = resumable()
    with (
        pytest.raises(FileNotFoundError, match=r"resumed_from: there is no folder .*missing"),
        monitored(accelerator, model, optimizer, run, resumed_from=tmp_path / "missing"),
    ):
        pass
    assert not run.exists()


def test_nested_blocks_have_a_step_each(tmp_path):
    from gradkern.integrations.accelerate import monitored

    accelerator, model, optimizer, train = resumable()
    with monitored(accelerator, model, optimizer, tmp_path / "outer") as outer:
        train(2)
        with monitored(accelerator, model, optimizer, tmp_path / "inner") as inner:
            train(1)
            accelerator.save_state(str(tmp_path / "state"))
            train(1)
            accelerator.load_state(str(tmp_path / "state"))
            assert (outer.step, inner.step) == (3, 1)


def test_a_damaged_file(tmp_path, run):
    from gradkern.integrations.accelerate import monitored

    accelerator, model, optimizer, train = resumable()
    with monitored(accelerator, model, optimizer, run):
        train(1)
        accelerator.save_state(str(tmp_path / "state"))
        (tmp_path / "state" / "gradkern_0.json").write_text('{"st')
        with pytest.raises(ValueError, match=r"the file is damaged\. Delete it"):
            accelerator.load_state(str(tmp_path / "state"))


def test_several_models_by_name(run):
    from gradkern.integrations.accelerate import monitored

    accelerator = accelerate.Accelerator(cpu=True)
    models = {"G": nn.Linear(6, 3), "D": nn.Linear(3, 1)}
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=0.05) for name, model in models.items()}
    models = {name: accelerator.prepare(model) for name, model in models.items()}
    optimizers = {name: accelerator.prepare(optimizer) for name, optimizer in optimizers.items()}
    totals = []
    with monitored(accelerator, models, optimizers, run):
        for _ in range(3):
            accelerator.backward(models["D"](models["G"](torch.ones(2, 6))).square().mean())
            for name, model in models.items():
                totals.append(float(accelerator.clip_grad_norm_(model.parameters(), 1.0)))
                optimizers[name].step()
            for optimizer in optimizers.values():
                optimizer.zero_grad()
    history = gradkern.History.open(run)
    assert history.names == ("G.weight", "G.bias", "D.weight", "D.bias")
    squares = np.square(history.norm)
    measured = np.sqrt(np.stack([squares[:, :2].sum(axis=1), squares[:, 2:].sum(axis=1)], axis=1))
    np.testing.assert_allclose(measured, np.reshape(totals, (3, 2)), rtol=1e-5)


def test_deepspeed_is_refused(run):
    from types import SimpleNamespace

    from gradkern.integrations.accelerate import monitored

    accelerator = SimpleNamespace(distributed_type=accelerate.DistributedType.DEEPSPEED)
    with (
        pytest.raises(ValueError, match=r"DeepSpeed clips by itself\. Record its engine"),
        monitored(accelerator, nn.Linear(1, 1), None, run),
    ):
        pass
    assert not run.exists()


def test_the_page(tmp_path):
    run_page("accelerate.md")
    assert len(gradkern.History.open(tmp_path / "runs" / "first")) == 4
