"""Update ratios and histograms against float64."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from gradkern import GradClipper, GradMonitor, History
from gradkern.history.format import EXPONENTS, FORMATS
from gradkern.monitor.periodic.histogram import histogram
from gradkern.monitor.sample import Sample, stride_for
from gradkern.params import steps
from tests.support.loops import small_model, train


def reference(before: list[torch.Tensor], after: list[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    norm = [w.double().norm().item() for w in before]
    delta = [(b.double() - a.double()).norm().item() for b, a in zip(before, after)]
    return np.array(norm), np.array(delta) / np.array(norm)


def test_small_models_are_exact(tmp_path):
    model = small_model()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    expected = {}
    with GradMonitor(model, optimizer, tmp_path, update_every=3) as monitor:
        for step in range(1, 7):
            model(torch.randn(3, 6)).square().sum().backward()
            before = [p.detach().clone() for p in model.parameters()]
            monitor.record()
            optimizer.step()
            expected[step] = reference(before, list(model.parameters()))
        history = monitor.history()
    assert history.update_steps.tolist() == [1, 2, 3, 6] and history.update_exact.all()
    for row, step in enumerate([1, 2, 3, 6]):
        np.testing.assert_allclose(history.weight_norm[row], expected[step][0], rtol=1e-6)
        np.testing.assert_allclose(history.update_ratio[row], expected[step][1], rtol=1e-5)


def test_optimizer_steps_that_are_not_recorded_are_not_taken_for_the_recorded_one(tmp_path):
    weight = nn.Parameter(torch.full((4,), 1.0))
    optimizer, expected = torch.optim.SGD([weight], lr=1.0), {}
    with GradMonitor([("w", weight)], optimizer, tmp_path, update_every=10) as monitor:
        for step in range(1, 41):
            weight.grad = torch.full((4,), float(step))
            before = weight.detach().norm().item()
            if step % 5 == 0:
                monitor.record(step=step)
                expected[step] = step * 2 / before
            optimizer.step()
        history = monitor.history()
        assert history.update_steps.tolist() == [10, 20, 30, 40]
        wanted = [expected[step] for step in (10, 20, 30, 40)]
        np.testing.assert_allclose(history.update_ratio[:, 0], wanted, rtol=1e-6)
        monitor.load_state_dict({"step": 39})  # the same number again is another step
        monitor.record()
        optimizer.step()
        assert monitor.history().update_steps.tolist() == [10, 20, 30, 40]
        assert monitor.history().update_ratio[-1, 0] != history.update_ratio[-1, 0]


def test_large_models_are_sampled_and_say_so(tmp_path):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(1200, 1000))
    weight.grad = torch.randn(1200, 1000)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    before = weight.detach().clone()
    with GradMonitor([("w", weight)], optimizer, tmp_path) as monitor:
        monitor.record()
        optimizer.step()
        history = monitor.history()
    norm, ratio = reference([before], [weight])
    assert not history.update_exact.any()
    # About 1,000 elements: the standard error of a norm is 2 %, and 3 % for the ratio of two.
    np.testing.assert_allclose(history.weight_norm[0], norm, rtol=0.1)
    np.testing.assert_allclose(history.update_ratio[0], ratio, rtol=0.15)


def test_no_step_is_listened_to_after_the_end(tmp_path):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradMonitor(model, optimizer, tmp_path):
        assert steps._listeners[optimizer]
    assert steps._listeners[optimizer] == ()
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_neither_optimizer_nor_monitor_keeps_the_other_alive(tmp_path):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = GradMonitor(model, optimizer, tmp_path)
    listener = weakref.ref(next(iter(monitor._recording._captures.values())).weights)
    optimizer.step()
    del monitor
    gc.collect()
    assert listener() is None
    optimizer.step()
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradMonitor(model, other, tmp_path / "b"):
        pass
    reference = weakref.ref(other)
    del other
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("when", ["pre", "post"])
@pytest.mark.parametrize("late", [False, True])
def test_closed_in_a_hook_of_the_optimizer(tmp_path, when, late):
    model, called = small_model(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    register = getattr(optimizer, f"register_step_{when}_hook")
    if not late:
        register(lambda *_: monitor.close())
    with GradMonitor(model, optimizer, tmp_path, update_every=1) as monitor:
        if late:
            register(lambda *_: monitor.close())
        register(lambda *_: called.append(1))
        model(torch.ones(2, 6)).sum().backward()
        monitor.record()
        for _ in range(2):
            optimizer.step()
    assert len(called) == 2 and len(History.open(tmp_path)) == 1


def test_zero_weights_give_an_infinite_ratio(tmp_path):
    weight = nn.Parameter(torch.zeros(4))
    weight.grad = torch.ones(4)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with GradMonitor([("w", weight)], optimizer, tmp_path) as monitor:
        monitor.record()
        optimizer.step()
        history = monitor.history()
    assert history.weight_norm[0, 0] == 0 and np.isposinf(history.update_ratio[0, 0])


@pytest.mark.parametrize("shape", [(4096, 1024), (1000, 1000, 3), (7, 300000), (2**21,), (999983,)])
def test_a_sample_does_not_run_down_one_column(shape):
    numel = int(np.prod(shape))
    stride = stride_for(numel, shape, 1024)
    taken = np.arange(0, numel, stride)
    assert 512 <= len(taken) <= 1024
    for axis, side in enumerate(shape):
        if side > 1:
            seen = np.unique(np.unravel_index(taken, shape)[axis])
            assert len(seen) >= min(side, len(taken)) // 4


def test_histogram_counts_every_element_of_a_small_model():
    torch.manual_seed(0)
    grads = [torch.randn(50, 20) * 2.0**-20, None, torch.tensor([0.0, 2.0**-70, 3.0e9, float("nan"), 1.0])]
    params = [torch.empty(50, 20), torch.empty(3), torch.empty(5)]
    ((rows, (few_counts, few_underflow)),) = histogram(grads, Sample(params), None, 1.0)
    assert rows == [0, 2]
    counts, underflow = torch.zeros(3, len(EXPONENTS)), torch.full((3, len(FORMATS)), float("nan"))
    counts[rows], underflow[rows] = few_counts.float(), few_underflow
    magnitude = grads[0].double().abs().flatten().numpy()
    bins = np.floor(np.log2(magnitude)).astype(int) - EXPONENTS[0]
    np.testing.assert_array_equal(counts[0].numpy(), np.bincount(bins, minlength=len(EXPONENTS)))
    assert counts[1].sum() == 0 and torch.isnan(underflow[1]).all()
    assert (
        counts[2].sum() == 3
        and counts[2][0] == 1
        and counts[2][-1] == 1
        and counts[2][-EXPONENTS[0] - 60 + 60] == 1
    )
    expected = [(magnitude <= limit).mean() for limit in FORMATS.values()]
    np.testing.assert_allclose(underflow[0].numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fp16", torch.float16),
        ("bf16", torch.bfloat16),
        ("fp8_e4m3", torch.float8_e4m3fn),
        ("fp8_e5m2", torch.float8_e5m2),
    ],
)
def test_underflow_limits_are_those_of_the_formats(name, dtype):
    limit = FORMATS[name]
    values = torch.tensor([limit, limit * (1 + 2.0**-10)], dtype=torch.float32)
    assert (values.to(dtype).float() == 0).tolist() == [True, False]


def test_histograms_are_from_before_clipping(tmp_path):
    weight = nn.Parameter(torch.ones(64))
    weight.grad = torch.full((64,), 3.0)
    with GradMonitor([("w", weight)], None, tmp_path, histogram_every=1) as monitor:
        monitor.record(GradClipper([("w", weight)], 0.01).clip_())
        history = monitor.history()
    assert weight.grad.max() < 0.01
    exponent = history.histogram_exponents[history.histogram[0, 0].argmax()]
    assert exponent == 1 and history.histogram[0, 0].max() == 64  # 2 <= 3 < 4
    assert history.histogram_steps.tolist() == [1]


def test_histograms_and_updates_do_not_disturb_training(tmp_path):
    plain, watched = small_model(), small_model()
    a = torch.optim.AdamW(plain.parameters(), lr=0.01)
    b = torch.optim.AdamW(watched.parameters(), lr=0.01)
    with GradMonitor(plain, a, tmp_path / "a", update_every=0) as monitor:
        train(plain, monitor, a, 12)
        assert len(monitor.history().update_steps) == 0
    with GradMonitor(watched, b, tmp_path / "b", update_every=2, histogram_every=3) as monitor:
        train(watched, monitor, b, 12)
        assert monitor.history().histogram_steps.tolist() == [3, 6, 9, 12]
    for one, other in zip(plain.parameters(), watched.parameters()):
        assert torch.equal(one, other)
