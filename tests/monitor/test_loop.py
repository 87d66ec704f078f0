"""Unusual training loops: arguments, orders of calls, a run that is deleted."""

from __future__ import annotations

import os
import shutil
import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import gradkern
from gradkern import GradClipper, GradMonitor
from gradkern.history.batch import Batch
from gradkern.monitor.captures.step import StepCapture
from tests.support.loops import small_model, train
from tests.support.wrapped import WrappedOptimizer


@pytest.fixture
def model() -> nn.Sequential:
    model = small_model()
    model(torch.ones(2, 6)).sum().backward()
    return model


# ---- arguments ----


@pytest.mark.parametrize(
    ("loss", "kind", "message"),
    [
        ("0.5", TypeError, r"expected one real number, got '0.5' \(str\)"),
        (b"1", TypeError, r"got b'1' \(bytes\)"),
        (1j, TypeError, r"got 1j \(complex\)"),
        (np.ones(2), TypeError, r"got array\(\[1., 1.\]\) \(ndarray\)"),
        (np.array([1j]), TypeError, r"expected one real number"),
        ([0.5], TypeError, r"got \[0.5\] \(list\)"),
        (10**400, ValueError, r"expected a number that a float can hold, got one that is too large"),
        (torch.ones(2), ValueError, r"expected one number, got a tensor of shape \(2,\)"),
        (torch.tensor(1j), TypeError, r"got a tensor of torch.complex64 \(Tensor\)"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_loss_that_is_no_number_is_refused_and_nothing_is_lost(tmp_path, model, loss, kind, message):
    with GradMonitor(model, None, tmp_path) as monitor:
        monitor.record(loss=1.0)
        with pytest.raises(kind, match=r"\[GradMonitor.record\] loss: .*" + message):
            monitor.record(loss=loss)
        assert monitor.step == 1
        monitor.record(loss=2.0)
        history = monitor.history()
        assert history.steps.tolist() == [1, 2] and history.loss.tolist() == [1.0, 2.0]
        assert monitor.lost == 0


def test_a_loss_may_be_any_number(tmp_path, model):
    losses = [
        0.5, 1, True, np.float32(0.25), np.array([1.5]), np.array(2.5), np.int64(3), Decimal("0.125"),
        Fraction(1, 4), torch.tensor(0.75), torch.tensor([4.0]), torch.tensor(5),
        torch.tensor(0.5).bfloat16(), torch.tensor(2.0, requires_grad=True), torch.tensor(True),
    ]  # fmt: skip
    with GradMonitor(model, None, tmp_path) as monitor:
        for loss in losses:
            monitor.record(loss=loss)
        history = monitor.history()
    assert history.loss.tolist() == [float(x.item() if hasattr(x, "item") else x) for x in losses]


def test_a_loss_is_what_it_was_when_it_was_recorded(tmp_path, model):
    loss = torch.tensor(3.0)
    with GradMonitor(model, None, tmp_path) as monitor:
        monitor.record(loss=loss)
        loss.mul_(100.0)
        assert monitor.history().loss.tolist() == [3.0]


def test_a_step_may_be_any_integer(tmp_path, model):
    with GradMonitor(model, None, tmp_path, every=np.int64(1)) as monitor:
        for step in (np.int64(3), torch.tensor(4), np.uint8(7)):
            monitor.record(step=step)
        assert type(monitor.step) is int
        for bad in (1.0, "3", True, [], -1, 2**70):
            with pytest.raises(ValueError, match=r"\[GradMonitor\] step: expected an integer of at least 0"):
                monitor.record(step=bad)
        assert monitor.history().steps.tolist() == [3, 4, 7]


def test_a_learning_rate_that_is_no_number_is_nan(tmp_path, model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradMonitor(model, optimizer, tmp_path) as monitor:
        for rate in (0.1, torch.tensor(0.2), 1, "fast", None):
            optimizer.param_groups[0]["lr"] = rate
            monitor.record()
        np.testing.assert_allclose(monitor.history().lr, [0.1, 0.2, 1.0, np.nan, np.nan], rtol=1e-6)


def test_a_group_without_a_learning_rate_has_nan(tmp_path, model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    del optimizer.param_groups[1]["lr"]
    with GradMonitor(model, optimizer, tmp_path) as monitor:
        monitor.record()
        history = monitor.history()
    assert len(history) == 1 and history.lr.tolist() == [0.1]
    np.testing.assert_array_equal(history.lr_groups, [[0.1, np.nan]])


def accelerated(optimizer):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    return accelerate.Accelerator(cpu=True).prepare_optimizer(optimizer)


@pytest.mark.parametrize(
    "wrap", [WrappedOptimizer, lambda o: WrappedOptimizer(WrappedOptimizer(o)), accelerated]
)
def test_a_wrapped_optimizer_is_watched_by_the_one_within(tmp_path, model, wrap):
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapped = wrap(inner)
    with GradMonitor(model, wrapped, tmp_path, update_every=1) as monitor:
        monitor.record()
        wrapped.step()
        history = monitor.history()
    assert history.meta["optimizer"] == "SGD" and history.lr.tolist() == [0.1]
    assert history.update_steps.tolist() == [1] and np.isfinite(history.update_ratio).any()
    assert not inner._optimizer_step_pre_hooks


# ---- before or after clipping, scaled or not ----


def test_only_what_is_known_is_called_before_clipping(tmp_path, model):
    stats = gradkern.measure(model)
    with GradMonitor(model, None, tmp_path, sinks=["jsonl"]) as monitor:
        monitor.record(GradClipper(model, 1.0).clip_())
        monitor.record(stats)
        monitor.record(stats, after_clip=False)
        monitor.record(stats, after_clip=True)
        monitor.record()
        monitor.record(after_clip=False)
        with pytest.raises(TypeError, match="after_clip: expected True, False or None, got 'no'"):
            monitor.record(stats, after_clip="no")
        history = monitor.history()
    said = ["before_clip", "measured", "before_clip", "after_clip", "measured", "before_clip"]
    assert history.phase.tolist() == said
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    keys = {
        "before_clip": '"grad_norm":',
        "measured": '"grad_norm_measured":',
        "after_clip": '"grad_norm_after_clip":',
    }
    for line, phase in zip(lines, said, strict=True):
        assert [key in line for key in keys.values()] == [name == phase for name in keys]


def test_statistics_know_the_scale_that_a_scaler_took_out(tmp_path, model):
    plain = gradkern.measure(model).total_norm.item()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))  # makes the scale
    for p in model.parameters():
        p.grad *= 1024.0
    clipper = GradClipper(model, 0.1, optimizer=None)
    with GradMonitor(model, optimizer, tmp_path, histogram_every=1) as monitor:
        stats = clipper.clip_(scaler=scaler, optimizer=optimizer)
        monitor.record(stats)
        with pytest.raises(
            ValueError, match=r"inv_scale: the statistics were measured with 0.0009765625, got 1.0"
        ):
            monitor.record(stats, inv_scale=1.0)
        history = monitor.history()
    assert history.inv_scale.tolist() == [1 / 1024] and stats.to_dict()["inv_scale"] == 1 / 1024
    assert history.total_norm[0] == pytest.approx(plain, rel=1e-6) and history.clipped.all()
    largest = np.flatnonzero(history.histogram[0].sum(axis=0)).max()
    top = float(history.max_abs[0].max())
    assert (
        2.0 ** history.histogram_exponents[largest] <= top < 2.0 ** (history.histogram_exponents[largest] + 1)
    )


def test_a_folded_clip_leaves_gradients_that_histograms_see_as_they_are(tmp_path):
    weight = nn.Parameter(torch.ones(64))
    weight.grad = torch.full((64,), 3.0)
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    clipper = GradClipper([("w", weight)], 0.01, optimizer=optimizer, fold=True)
    with GradMonitor([("w", weight)], optimizer, tmp_path, histogram_every=1, update_every=0) as monitor:
        monitor.record(clipper.clip_())
        history = monitor.history()
    assert history.histogram_exponents[history.histogram[0, 0].argmax()] == 1  # 2 <= 3 < 4


# ---- the order of record and the optimizer's step ----


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("extra", [0, 1, 2])
def test_update_ratios_belong_to_their_step_whatever_came_before_the_loop(tmp_path, extra, set_to_none):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with GradMonitor(model, optimizer, tmp_path, update_every=1) as monitor:
        for _ in range(extra):  # makes the optimizer's state, say
            model(torch.ones(2, 6)).sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none)
        for step in range(1, 6):
            model(torch.ones(2, 6)).sum().backward()
            optimizer.param_groups[0]["lr"] = 0.01 if step == 4 else 0.0
            monitor.record()
            optimizer.step()
            optimizer.zero_grad(set_to_none)
        history = monitor.history()
    # The first step after the first record decides, so nothing of what came before is kept.
    assert history.update_steps.tolist() == [1, 2, 3, 4, 5]
    moved = np.nan_to_num(history.update_ratio).max(axis=1) > 0
    assert moved.tolist() == [False, False, False, True, False]


# ---- what goes wrong while it trains ----


def test_a_run_folder_that_is_deleted_is_warned_of_once(tmp_path, model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = GradMonitor(model, optimizer, tmp_path / "run")
    train(model, monitor, optimizer, 5)
    assert monitor.flush()
    shutil.rmtree(tmp_path / "run")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(3):
            train(model, monitor, optimizer, 5)
            assert not monitor.flush()
        monitor.close()
    texts = [str(w.message) for w in warned]
    assert len([t for t in texts if "history.db': the file was deleted or replaced while" in t]) == 1, texts
    assert len(texts) == 1 and monitor.lost == 15
    assert not (tmp_path / "run").exists()


def test_a_row_that_cannot_be_made_takes_no_other_with_it(tmp_path, model, monkeypatch):
    made = StepCapture.row

    def row(self, presence):
        if self.step == 3:
            raise RuntimeError("a bug")
        return made(self, presence)

    monkeypatch.setattr(StepCapture, "row", row)
    with GradMonitor(model, None, tmp_path) as monitor:
        with pytest.warns(RuntimeWarning, match=r"step 3 cannot be recorded: RuntimeError\('a bug'\)"):
            for _ in range(5):
                monitor.record()
            monitor.flush()
        assert monitor.lost == 1 and monitor.history().steps.tolist() == [1, 2, 4, 5]


def test_a_row_that_cannot_be_written_takes_no_other_with_it(tmp_path, model, monkeypatch):
    with GradMonitor(model, None, tmp_path) as monitor:
        add_step = Batch.add_step

        def refusing(batch, seq, branch, layout, row):
            if row.step == 3:
                raise ValueError("no such number")
            add_step(batch, seq, branch, layout, row)

        monkeypatch.setattr(Batch, "add_step", refusing)
        with pytest.warns(RuntimeWarning, match="step 3 cannot be recorded: ValueError"):
            for _ in range(5):
                monitor.record()
            monitor.flush()
        assert monitor.lost == 1
        assert monitor.history().steps.tolist() == [1, 2, 4, 5]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_records_nothing_and_ends_nothing(tmp_path, model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradMonitor(model, optimizer, tmp_path, update_every=1) as monitor:
        monitor.record()
        child = os.fork()
        if child == 0:
            try:
                monitor.record()
            except RuntimeError as error:
                optimizer.step()  # its hooks are off
                monitor.close()
                os._exit(0 if "forked from the one that records" in str(error) else 2)
            os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        monitor.record()
        assert monitor.history().steps.tolist() == [1, 2]
