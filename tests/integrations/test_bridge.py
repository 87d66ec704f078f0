"""Clips that other code makes, recorded by the monitor of their parameters."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import nn

import gradkern


@pytest.fixture(autouse=True)
def _unpatched():
    yield
    gradkern.unpatch_torch()


def model_of(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 6, generator=generator) for _ in range(count)]


def backward(model, x):
    loss = (model(x) - x.sum(dim=1, keepdim=True)).square().mean()
    loss.backward()
    return loss


def norms(model):
    """An independent measurement: float64, by torch's own operations."""
    return [p.grad.double().square().sum().sqrt().item() for p in model.parameters()]


def recorded(folder):
    return gradkern.History.open(folder)


def test_a_foreign_clip_is_recorded_from_before_clipping(tmp_path):
    model, plain = model_of(), model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reference = torch.optim.SGD(plain.parameters(), lr=0.1)
    monitor = gradkern.GradMonitor(model, optimizer, tmp_path)
    gradkern.patch_torch(monitor)
    expected = []
    for x in batches(6):
        backward(model, x)
        expected.append(norms(model))
        total = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        assert total.item() == pytest.approx(np.linalg.norm(expected[-1]), rel=1e-6)
        optimizer.step()
        optimizer.zero_grad()
        backward(plain, x)
        gradkern.clip_grad_norm_(plain.parameters(), 0.5)
        reference.step()
        reference.zero_grad()
    monitor.close()
    for mine, theirs in zip(model.parameters(), plain.parameters()):
        assert torch.equal(mine, theirs)
    history = recorded(tmp_path)
    assert history.steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert history.names == tuple(name for name, _ in model.named_parameters())
    np.testing.assert_allclose(history.norm, expected, rtol=1e-6)
    np.testing.assert_allclose(history.total_norm, np.linalg.norm(expected, axis=1), rtol=1e-6)
    assert history.clipped.all()
    assert history.lr.tolist() == [0.1] * 6
    assert set(history.phase) == {"before_clip"}


def test_the_pair_of_functions_and_the_value(tmp_path):
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = gradkern.GradMonitor(model, optimizer, tmp_path)
    expected = []
    with gradkern.patched_torch(monitor):
        for row, x in enumerate(batches(4)):
            optimizer.zero_grad()
            backward(model, x)
            expected.append(norms(model))
            if row % 2:
                torch.nn.utils.clip_grad_value_(model.parameters(), 0.01)
            else:
                total = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
                torch.nn.utils.clip_grads_with_norm_(model.parameters(), 0.5, total)
            optimizer.step()
    monitor.close()
    history = recorded(tmp_path)
    np.testing.assert_allclose(history.norm, expected, rtol=1e-6)
    assert set(history.phase) == {"before_clip"}
    assert np.isfinite(history.clip_coef).tolist() == [True, False, True, False]


def test_a_clip_that_was_imported_before_the_patch(tmp_path):
    from torch.nn.utils import clip_grad_norm_

    model = model_of()
    monitor = gradkern.GradMonitor(model, run_dir=tmp_path)
    gradkern.patch_torch(monitor)
    backward(model, batches(1)[0])
    expected = norms(model)
    clip_grad_norm_(model.parameters(), 0.5)
    monitor.close()
    history = recorded(tmp_path)
    np.testing.assert_allclose(history.norm[0], expected, rtol=1e-6)
    assert history.clipped.tolist() == [True]


def test_one_clip_a_parameter_is_one_step(tmp_path):
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = gradkern.GradMonitor(model, optimizer, tmp_path)
    gradkern.patch_torch(monitor)
    expected = []
    for x in batches(3):
        optimizer.zero_grad()
        backward(model, x)
        expected.append(norms(model))
        for param in model.parameters():
            torch.nn.utils.clip_grad_norm_(param, 0.1)
        optimizer.step()
    monitor.close()
    history = recorded(tmp_path)
    assert history.steps.tolist() == [1, 2, 3]
    np.testing.assert_allclose(history.norm, expected, rtol=1e-6)
    np.testing.assert_allclose(history.total_norm, np.linalg.norm(expected, axis=1), rtol=1e-6)


def test_record_closes_the_step_and_adds_the_loss(tmp_path):
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = gradkern.GradMonitor(model, optimizer, tmp_path)
    gradkern.patch_torch(monitor)
    losses = []
    for x in batches(3):
        optimizer.zero_grad()
        losses.append(backward(model, x).item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        monitor.record(loss=losses[-1])
        optimizer.step()
    monitor.close()
    history = recorded(tmp_path)
    assert history.steps.tolist() == [1, 2, 3]
    np.testing.assert_allclose(history.loss, losses, rtol=1e-6)
    assert set(history.phase) == {"before_clip"}


def test_every_leaves_out_whole_steps(tmp_path):
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = gradkern.GradMonitor(model, optimizer, tmp_path, every=3)
    gradkern.patch_torch(monitor)
    expected = []
    for x in batches(9):
        optimizer.zero_grad()
        loss = backward(model, x)
        expected.append(norms(model))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        monitor.record(loss=loss)
        optimizer.step()
    assert monitor.step == 9
    monitor.close()
    history = recorded(tmp_path)
    assert history.steps.tolist() == [3, 6, 9]
    np.testing.assert_allclose(history.norm, expected[2::3], rtol=1e-6)


def test_a_total_over_other_stages(tmp_path):
    """A pipeline's stages add up their totals, and each clips with the sum."""
    stages = model_of()[0], model_of()[2]
    monitors = [gradkern.GradMonitor(stage, run_dir=tmp_path / str(i)) for i, stage in enumerate(stages)]
    for monitor in monitors:
        gradkern.patch_torch(monitor)
    backward(nn.Sequential(stages[0], nn.Tanh(), stages[1]), batches(1)[0])
    expected = [norms(stage) for stage in stages]
    totals = [torch.nn.utils.get_total_norm([p.grad for p in stage.parameters()]) for stage in stages]
    total = torch.stack(totals).norm()
    for stage in stages:
        torch.nn.utils.clip_grads_with_norm_(stage.parameters(), 0.5, total)
    for i, monitor in enumerate(monitors):
        monitor.close()
        history = recorded(tmp_path / str(i))
        np.testing.assert_allclose(history.norm[0], expected[i], rtol=1e-6)
        assert history.total_norm[0] == pytest.approx(total.item(), rel=1e-6)
        assert history.clip_coef[0] == pytest.approx(0.5 / (total.item() + 1e-6), rel=1e-6)


def test_a_total_that_several_calls_share(tmp_path):
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradkern.GradMonitor(model, optimizer, tmp_path) as monitor, gradkern.patched_torch(monitor):
        backward(model, batches(1)[0])
        expected = np.linalg.norm(norms(model))
        total = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        for part in model[0], model[2]:
            torch.nn.utils.clip_grads_with_norm_(part.parameters(), 0.5, total)
        optimizer.step()
    history = recorded(tmp_path)
    assert history.steps.tolist() == [1]
    assert history.total_norm[0] == pytest.approx(expected, rel=1e-6)


def test_without_an_optimizer_the_next_clip_closes_the_step(tmp_path):
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = gradkern.GradMonitor(model, run_dir=tmp_path)
    gradkern.patch_torch(monitor)
    for x in batches(3):
        optimizer.zero_grad()
        backward(model, x)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    assert monitor.step == 2
    monitor.close()
    assert recorded(tmp_path).steps.tolist() == [1, 2, 3]


def test_a_step_that_a_scaler_skips_is_recorded_as_skipped(tmp_path):
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    monitor = gradkern.GradMonitor(model, optimizer, tmp_path)
    gradkern.patch_torch(monitor)
    for row, x in enumerate(batches(4)):
        optimizer.zero_grad()
        scaler.scale((model(x) * (float("inf") if row == 1 else 1.0)).square().mean()).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
    monitor.close()
    history = recorded(tmp_path)
    assert history.steps.tolist() == [1, 2, 3, 4]
    assert history.skipped.tolist() == [False, True, False, False]


def test_two_monitors_get_their_own(tmp_path):
    one, two = model_of(0), model_of(1)
    first = gradkern.GradMonitor(one, run_dir=tmp_path / "one")
    second = gradkern.GradMonitor(two, run_dir=tmp_path / "two")
    gradkern.patch_torch(first)
    gradkern.patch_torch(second)
    x = batches(1)[0]
    backward(one, x)
    backward(two, x)
    expected = norms(one), norms(two)
    total = torch.nn.utils.clip_grad_norm_([*one.parameters(), *two.parameters()], 0.5).item()
    first.close()
    second.close()
    for folder, values in zip(("one", "two"), expected):
        history = recorded(tmp_path / folder)
        np.testing.assert_allclose(history.norm[0], values, rtol=1e-6)
        assert history.total_norm[0] == pytest.approx(total)


def test_error_if_nonfinite_raises_and_records_nothing(tmp_path):
    model = model_of()
    monitor = gradkern.GradMonitor(model, run_dir=tmp_path)
    gradkern.patch_torch(monitor)
    backward(model, batches(1)[0])
    model[0].weight.grad[0, 0] = float("nan")
    before = [p.grad.clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match="non-finite"):
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5, error_if_nonfinite=True)
    assert all(torch.equal(a, p.grad) or a.isnan().any() for a, p in zip(before, model.parameters()))
    assert not monitor.has_pending
    monitor.close()


def test_the_patch_says_what_it_replaced_and_what_it_missed():
    import sys
    import types

    module = types.ModuleType("a_training_script")
    module.measure = torch.nn.utils.get_total_norm
    module.clip = torch.nn.utils.clip_grad_norm_  # reached nevertheless
    sys.modules["a_training_script"] = module
    try:
        patch = gradkern.patch_torch()
    finally:
        del sys.modules["a_training_script"]
    sys.modules["a_training_script"] = module
    try:
        assert patch.older == ["a_training_script.measure"]
    finally:
        del sys.modules["a_training_script"]
    assert "torch.nn.utils.clip_grad_norm_" in patch.replaced
    assert "torch.nn.utils.clip_grad._get_total_norm" in patch.replaced


def test_the_context_lets_go_of_its_monitor(tmp_path):
    model = model_of()
    monitor = gradkern.GradMonitor(model, run_dir=tmp_path)
    gradkern.patch_torch()
    with gradkern.patched_torch(monitor):
        pass
    backward(model, batches(1)[0])
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    assert not monitor.has_pending
    monitor.close()


def test_patching_from_several_threads():
    originals = []
    for _ in range(20):
        threads = [threading.Thread(target=gradkern.patch_torch) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gradkern.unpatch_torch()
        originals.append(torch.nn.utils.clip_grad_norm_)
    assert all(function.__module__ == "torch.nn.utils.clip_grad" for function in originals)


def test_a_closed_monitor_is_let_go(tmp_path):
    import gc
    import weakref

    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradkern.patch_torch(gradkern.GradMonitor(model, optimizer, tmp_path))  # kept by the patch alone
    backward(model, batches(1)[0])
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    gradkern.unpatch_torch()
    gc.collect()
    assert recorded(tmp_path).steps.tolist() == [1]
    monitor = gradkern.GradMonitor(model, optimizer, tmp_path)
    alive = weakref.ref(monitor)
    gradkern.patch_torch(monitor)
    monitor.close()
    gradkern.patch_torch(gradkern.GradMonitor(model, optimizer, tmp_path / "next"))
    del monitor
    gc.collect()
    assert alive() is None


def test_what_is_no_monitor_is_refused():
    with pytest.raises(TypeError, match="expected a GradMonitor, got Linear"):
        gradkern.patch_torch(nn.Linear(1, 1))


def test_torchtitans_arguments():
    (param,) = list(nn.Linear(2, 1, bias=False).parameters())
    param.grad = torch.tensor([[3.0, 4.0]])
    with gradkern.patched_torch():
        total = torch.nn.utils.clip_grad_norm_([param], 1.0, foreach=True, pp_mesh=None, ep_enabled=False)
    assert total.item() == 5.0
