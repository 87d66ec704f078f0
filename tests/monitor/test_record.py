"""Recorded statistics agree with those of the training loop."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import gradkern
from gradkern import GradClipper, GradMonitor, History, HistoryError
from gradkern.sinks import Sink
from tests.support.loops import small_model, train


@pytest.fixture
def model() -> nn.Sequential:
    return small_model()


def sgd(model: nn.Module, lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


def test_history_holds_what_the_loop_saw(tmp_path, model):
    optimizer = sgd(model)
    with GradMonitor(model, optimizer, tmp_path) as monitor:
        stats = train(model, monitor, optimizer, 30, max_norm=10.0)
    with History.open(tmp_path) as history:
        assert history.steps.tolist() == list(range(1, 31))
        assert history.names == tuple(n for n, _ in model.named_parameters())
        np.testing.assert_array_equal(history.norm, np.stack([s.norm.numpy() for s in stats]))
        np.testing.assert_array_equal(history.max_abs, np.stack([s.max_abs.numpy() for s in stats]))
        np.testing.assert_allclose(history.rms, np.stack([s.rms.numpy() for s in stats]), rtol=1e-6)
        np.testing.assert_array_equal(history.total_norm, [s.total_norm.item() for s in stats])
        np.testing.assert_array_equal(history.clip_coef, [s.clip_coef.item() for s in stats])
        assert history.clipped.tolist() == [s.clip_coef.item() < 1 for s in stats]
        assert history.clipped.any() and not history.clipped.all()
        np.testing.assert_allclose(history.max_norm[history.clipped], 10.0, rtol=1e-6)
        assert (history.max_norm == 10.0).all() and (history.threshold == 10.0).all()
        assert history.lr.tolist() == [0.05] * 30
        assert history.has_loss.all() and (history.loss > 0).all()
        assert set(history.phase) == {"before_clip"} and set(history.inv_scale) == {1.0}
        assert history.has_grad.all() and not history.nonfinite.any()
        assert (history.zeros >= 0).any(axis=1).nonzero()[0].tolist() == [0, 1, 3, 7, 15]  # periodic
        assert not history.skipped.any() and (np.diff(history.time) >= 0).all()
        assert history.params["2.weight"] == {
            "numel": 32, "shape": [4, 8], "dtype": "float32", "trainable": True, "group": 0, "kind": "Linear"
        }  # fmt: skip
        assert "30 steps 1–30" in repr(history)


def test_layers_roll_up_as_by_layer_does(tmp_path, model):
    optimizer = sgd(model)
    with GradMonitor(model, optimizer, tmp_path) as monitor:
        stats = train(model, monitor, optimizer, 5)
        layers = monitor.history().layers(1)
    rolled = [s.by_layer(1) for s in stats]
    assert layers.names == rolled[0].names and layers.numel.tolist() == list(rolled[0].numel)
    np.testing.assert_allclose(layers.rms, np.stack([r.rms.numpy() for r in rolled]), rtol=1e-6)
    np.testing.assert_allclose(layers.max_abs, np.stack([r.max_abs.numpy() for r in rolled]), rtol=1e-6)


def test_measures_by_itself_and_says_so(tmp_path, model):
    with GradMonitor(model, None, tmp_path, count_zeros=True) as monitor:
        model(torch.ones(2, 6)).sum().backward()
        model[0].bias.grad.zero_()
        monitor.record(inv_scale=0.5)
        monitor.record(gradkern.measure(model), after_clip=True)
        history = monitor.history()
    assert history.phase.tolist() == ["measured", "after_clip"]
    assert history.inv_scale.tolist() == [0.5, 1.0]
    np.testing.assert_allclose(2 * history.norm[0], history.norm[1], rtol=1e-6)
    assert history.zeros[0][1] == 8 and history.zeros[1].tolist() == [-1, 8, -1, 0, 0, 0, -1, 0]
    assert not history.has_coef.any() and np.isnan(history.clip_coef).all() and not history.has_loss.any()
    assert np.isnan(history.lr).all()


def test_contradictions_are_refused(tmp_path, model):
    model(torch.ones(2, 6)).sum().backward()
    stats = GradClipper(model, 1.0).clip_()
    with GradMonitor(model, None, tmp_path) as monitor:
        with pytest.raises(
            ValueError, match=r"\[GradMonitor.record\] after_clip: contradicts the statistics"
        ):
            monitor.record(stats, after_clip=True)
        with pytest.raises(
            ValueError, match=r"\[GradMonitor.record\] inv_scale: the statistics were measured with 1.0"
        ):
            monitor.record(stats, inv_scale=0.5)
        with pytest.raises(TypeError, match=r"\[GradMonitor.record\] stats: expected GradStats, got float"):
            monitor.record(1.0)
        with pytest.raises(ValueError, match=r"loss: expected one number, got a tensor of shape \(2,\)"):
            monitor.record(stats, loss=torch.ones(2))
        with pytest.raises(ValueError, match=r"step: expected an integer of at least 0, got -1"):
            monitor.record(stats, step=-1)
        monitor.record(stats)
        with pytest.raises(ValueError, match=r"norm_type: expected 2.0 as before in this run, got inf"):
            monitor.record(gradkern.measure(model, norm_type=float("inf")))
    with pytest.raises(RuntimeError, match="cannot record, because the monitor is closed"):
        monitor.record(stats)
    with (
        GradMonitor(model, None, tmp_path) as again,
        pytest.raises(ValueError, match=r"expected 2.0 as in .*history"),
    ):
        again.record(gradkern.measure(model, norm_type=1.0))
    for arguments in ({"every": 0}, {"update_every": -1}, {"histogram_every": 1.5}):
        (key,) = arguments
        with pytest.raises(ValueError, match=rf"\[GradMonitor\] {key}: expected an integer of at least"):
            GradMonitor(model, None, tmp_path / "x", **arguments)


WRONG = [
    ({"stats": 1.0}, TypeError, "stats: expected GradStats, got float"),
    (
        {"stats": torch.ones(())},
        TypeError,
        "stats: expected GradStats, got Tensor; pass what clipper.clip_() or gradkern.measure(model)",
    ),
    ({"loss": "low"}, TypeError, "loss: expected one real number, got 'low'"),
    ({"after_clip": "yes"}, TypeError, "after_clip: expected True, False or None, got 'yes'"),
    ({"after_clip": []}, TypeError, "after_clip: expected True, False or None, got []"),
    ({"inv_scale": "x"}, TypeError, "inv_scale: expected a number, got 'x' (str)"),
    ({"inv_scale": 0}, ValueError, "inv_scale: expected a positive finite number, got 0.0"),
    ({"inv_scale": -1.0}, ValueError, "inv_scale: expected a positive finite number, got -1.0"),
    ({"inv_scale": float("nan")}, ValueError, "inv_scale: expected a number, got NaN"),
    ({"inv_scale": float("inf")}, ValueError, "inv_scale: expected a positive finite number, got inf"),
]


@pytest.mark.parametrize("every", [1, 10])
def test_wrong_arguments_are_found_at_the_first_call(tmp_path, model, every):
    model(torch.ones(2, 6)).sum().backward()
    stats = gradkern.measure(model)
    with GradMonitor(model, None, tmp_path, every=every) as monitor:
        for wrong, kind, message in WRONG:
            for given in ({}, {"stats": stats}):
                with pytest.raises(kind, match=re.escape(f"[GradMonitor.record] {message}")):
                    monitor.record(**{**given, **wrong})
        for state in ({}, None, {"steps": 3}):
            expected = r"\[GradMonitor.load_state_dict\] state: expected what state_dict\(\) returned, got"
            with pytest.raises(ValueError, match=expected):
                monitor.load_state_dict(state)
        assert monitor.step == 0


def test_runs_of_one_second_get_a_folder_each(tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "20250101-000000")
    folders = []
    for _ in range(3):
        with GradMonitor(model) as monitor:
            folders.append(str(monitor.run_dir))
    base = "gradkern-runs/20250101-000000"
    assert folders == [base, f"{base}-2", f"{base}-3"]
    monkeypatch.chdir(tmp_path / base)
    (tmp_path / base / "gradkern-runs").symlink_to("nowhere")
    with pytest.raises(HistoryError, match=r"\[GradMonitor\] run_dir 'grad.*: cannot be written"):
        GradMonitor(model)


def test_other_orders_keep_the_l2_norm_beside(tmp_path, model):
    model(torch.ones(2, 6)).sum().backward()
    stats = GradClipper(model, 1.0, norm_type=float("inf")).clip_()
    with GradMonitor(model, None, tmp_path) as monitor:
        monitor.record(stats)
        history = monitor.history()
    assert history.norm_type == float("inf")
    np.testing.assert_array_equal(history.norm[0], stats.norm.numpy())
    np.testing.assert_array_equal(history.l2_norm[0], stats.l2_norm.numpy())
    np.testing.assert_allclose(history.rms[0], stats.rms.numpy(), rtol=1e-6)


def test_frozen_and_unused_parameters_have_no_gradient(tmp_path, model):
    model[0].requires_grad_(False)
    model.unused = nn.Linear(3, 3)
    optimizer = sgd(model)
    with GradMonitor(model, optimizer, tmp_path) as monitor:
        (model[4](model[3](model[2](model[1](model[0](torch.ones(2, 6))))))).sum().backward()
        monitor.record(GradClipper(model, 1.0).clip_())
        history = monitor.history()
    absent = [n for n, there in zip(history.names, history.has_grad[0]) if not there]
    assert absent == ["0.weight", "0.bias", "unused.weight", "unused.bias"]
    assert np.isnan(history.norm[0][~history.has_grad[0]]).all()
    assert np.isfinite(history.norm[0][history.has_grad[0]]).all()
    assert history.params["0.weight"]["trainable"] is False
    assert np.isnan(history.layers().rms[0][list(history.layers().names).index("unused")])


def test_shared_parameters_count_once(tmp_path):
    model = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)})
    model["b"].weight = model["a"].weight
    model["b"](model["a"](torch.ones(2, 4))).sum().backward()
    pairs = [("a.weight", model["a"].weight), ("b.weight", model["b"].weight)]
    with GradMonitor(pairs, None, tmp_path) as monitor:
        monitor.record(GradClipper(pairs, 10.0).clip_())
        history = monitor.history()
    norms = history.norm[0]
    assert norms[0] == norms[1] and history.total_norm[0] == pytest.approx(norms[0])
    np.testing.assert_allclose(history.layers(0).l2_norm[0], [norms[0]], rtol=1e-6)


def test_a_parameter_that_is_shared_no_more_counts_by_itself(tmp_path):
    a, b = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    a.grad, b.grad = torch.ones(4), torch.full((4,), 3.0)
    with GradMonitor([("a.weight", a), ("b.weight", a)], None, tmp_path) as monitor:
        monitor.record()
    with GradMonitor([("a.weight", a), ("b.weight", b)], None, tmp_path) as monitor:
        monitor.record()
        history = monitor.history()
    np.testing.assert_allclose(history.layers().rms, [[1.0, np.nan], [1.0, 3.0]])
    np.testing.assert_allclose(history.layers(0).l2_norm, [[2.0], [np.sqrt(40.0)]])
    np.testing.assert_allclose(history.summary(10, depth=1).rms[1], [1.0, 3.0])


def test_each_group_has_its_learning_rate(tmp_path, model):
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.3}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    with GradMonitor(model, optimizer, tmp_path) as monitor:
        model(torch.ones(2, 6)).sum().backward()
        monitor.record()
        optimizer.param_groups[1]["lr"] = torch.tensor(0.2)
        optimizer.add_param_group({"params": model[4].parameters(), "lr": 0.7})
        monitor.record()
        optimizer.param_groups[1]["lr"].fill_(9.0)  # in place, after the record
        history = monitor.history()
    np.testing.assert_allclose(history.lr_groups, [[0.1, 0.3, np.nan], [0.1, 0.2, 0.7]], rtol=1e-6)
    assert history.params["2.weight"]["group"] == 1


@pytest.mark.parametrize("wrap", ["compile", "ddp", "plain_parameters"])
def test_names_are_canonical(tmp_path, model, wrap):
    names = tuple(n for n, _ in model.named_parameters())
    wrapped, parameters = model, None
    if wrap == "compile":
        wrapped = torch.compile(model, backend="eager")
        assert next(wrapped.named_parameters())[0].startswith("_orig_mod.")
    elif wrap == "ddp":
        store = torch.distributed.FileStore(str(tmp_path / "rendezvous"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        wrapped = nn.parallel.DistributedDataParallel(model)
    else:
        parameters = list(model.parameters())
    try:
        with GradMonitor(wrapped, None, tmp_path / "run") as monitor:
            wrapped(torch.ones(2, 6)).sum().backward()
            monitor.record(GradClipper(parameters or wrapped, 1.0).clip_())
            monitor.record()
            history = monitor.history()
    finally:
        if wrap == "ddp":
            torch.distributed.destroy_process_group()
    assert history.names == names and len(history.layouts) == 1


def test_rows_get_the_name_of_their_very_parameter(tmp_path):
    model = nn.Sequential(*[nn.Linear(4, 4, bias=False) for _ in range(3)])
    model(torch.randn(2, 4)).sum().backward()
    expected = [p.grad.norm().item() for p in model.parameters()]
    names = tuple(n for n, _ in model.named_parameters())
    given = list(reversed(list(model.parameters())))
    foreign = nn.Parameter(torch.ones(4, 4))
    with GradMonitor(model, None, tmp_path / "a") as monitor:
        monitor.record(GradClipper(given, 100.0).clip_())
        monitor.record(gradkern.measure(given).cpu())
        monitor.record(gradkern.measure([("mine", given[0]), ("2.weight", given[1]), ("x", given[2])]))
        history = monitor.history()
    assert sorted(history.names) == list(names)
    columns = [history.names.index(name) for name in names]
    np.testing.assert_allclose(history.norm[:, columns], [expected] * 3, rtol=1e-6)
    assert history.params["1.weight"]["kind"] == "Linear"
    with GradMonitor(model, None, tmp_path / "b", update_every=0) as monitor:
        monitor.record(GradClipper([given[0], foreign, given[2]], 100.0).clip_())
        assert monitor.history().names == ("2.weight", "1", "0.weight")
        monitor.record(GradClipper(model[1], 100.0).clip_())  # calls it "weight"
        assert monitor.history().names == ("2.weight", "1", "0.weight", "1.weight")
    with GradMonitor(given, None, tmp_path / "c") as monitor:  # knows no names itself
        monitor.record(GradClipper(model, 100.0).clip_())
        assert monitor.history().names == names


def test_a_foreign_parameter_takes_no_name_of_the_model(tmp_path):
    """One clipper over a generator and a discriminator, both with "0.weight", and a monitor of one."""
    other, model = (nn.Sequential(nn.Linear(6, 6, bias=False)) for _ in range(2))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    other[0].weight.grad, model[0].weight.grad = torch.full((6, 6), 100.0), torch.full((6, 6), 1.0)
    both = GradClipper([*other.named_parameters(), *model.named_parameters()], 1e9)
    optimizer = sgd(model, 1e-3)
    with GradMonitor(model, optimizer, tmp_path / "a", update_every=1) as monitor:
        monitor.record(gradkern.measure(other))  # the model's name is its own, even where it is not listed
        monitor.record(both.clip_())
        optimizer.step()
        monitor.record()
        history = monitor.history()
    nan = float("nan")
    assert history.names == ("0.weight (2)", "0.weight")
    np.testing.assert_allclose(history.norm, [[600.0, nan], [600.0, 6.0], [nan, 6.0]])
    np.testing.assert_allclose(history.update_ratio, [[nan, 1e-3]], rtol=1e-3)
    mine, theirs = history.params["0.weight"], history.params["0.weight (2)"]
    assert theirs == {"numel": 36}
    assert (mine["kind"], mine["group"], mine["shape"]) == ("Linear", 0, [6, 6])
    numbered = [nn.Parameter(torch.ones(4)) for _ in range(3)]
    for i, p in enumerate(numbered):
        p.grad = torch.full((4,), 10.0**i)
    with GradMonitor(numbered[1:], None, tmp_path / "b") as monitor:
        monitor.record(GradClipper(numbered, 1e9).clip_())
        monitor.record()
        history = monitor.history()
    assert history.names == ("0 (2)", "0", "1")
    np.testing.assert_allclose(history.norm, [[2.0, 20.0, 200.0], [nan, 20.0, 200.0]])


def test_a_parameter_listed_twice_has_both_its_names(tmp_path):
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    a.grad, b.grad = torch.ones(3), torch.full((3,), 2.0)
    with GradMonitor([("a", a), ("b", a), ("c", b)], None, tmp_path / "a") as monitor:
        monitor.record(GradClipper([a, a, b], 1e9).clip_())
        monitor.record(gradkern.measure([("x", b), ("b", a), ("y", a)]))
        monitor.record()
        history = monitor.history()
    assert history.names == ("a", "b", "c") and len(np.unique(history.norm, axis=0)) == 1
    with GradMonitor([("w", a), ("w", b), ("w (2)", a)], None, tmp_path / "b") as monitor:
        monitor.record()
        monitor.record(GradClipper([("w", b), ("w", a)], 1e9).clip_())
        assert monitor.history().norm[:, :2].argmax(axis=1).tolist() == [1, 1]
        assert monitor.history().names == ("w", "w (2)", "w (2) (2)")
    GradMonitor([a], None, tmp_path / "b").close()


def test_statistics_keep_no_parameter_alive_and_can_be_copied(model):
    model(torch.ones(2, 6)).sum().backward()
    stats = [GradClipper(model, 1.0).clip_(), gradkern.measure(list(model.parameters()))]
    gone = weakref.ref(model[0].weight)
    copies = pickle.loads(pickle.dumps(copy.deepcopy(stats)))
    assert [len(s.by_layer()._identities) for s in copies] == [0, 0]
    assert not any(
        word in f"{s!r}{s}{s.to_dict()}" for s in copies for word in ("identities", str(id(gone())))
    )
    del model[0]
    gc.collect()
    assert gone() is None


def test_parameters_that_change_mid_run(tmp_path, model):
    optimizer = sgd(model)
    with GradMonitor(model, optimizer, tmp_path, update_every=1) as monitor:
        train(model, monitor, optimizer, 3)
        model[4] = nn.Linear(4, 2)
        model.append(nn.Linear(2, 1))
        optimizer.add_param_group({"params": [*model[4].parameters(), *model[5].parameters()]})
        train(model, monitor, optimizer, 3)
        history = monitor.history()
    assert history.names[-2:] == ("5.weight", "5.bias") and len(history) == 6
    assert not history.has_grad[:3, -2:].any() and history.has_grad[3:].all()
    column = history.names.index("4.weight")
    np.testing.assert_allclose(history.rms[0, column], history.l2_norm[0, column] / 2, rtol=1e-6)
    np.testing.assert_allclose(history.rms[5, column], history.l2_norm[5, column] / np.sqrt(8), rtol=1e-6)
    assert history.summary(10).names == history.names
    assert np.isnan(history.update_ratio[:3, -1]).all() and np.isfinite(history.update_ratio[3:, -1]).all()


def test_nan_everywhere(tmp_path, model):
    model(torch.ones(2, 6)).sum().backward()
    for p in model.parameters():
        p.grad.fill_(float("nan"))
    clipper = GradClipper(model, 1.0, on_nonfinite="skip")
    with GradMonitor(model, sgd(model), tmp_path, histogram_every=1, sinks=["jsonl"]) as monitor:
        for _ in range(40):
            monitor.record(clipper.clip_(), loss=float("nan"))
        history = monitor.history()
    assert np.isnan(history.total_norm).all() and np.isnan(history.norm).all() and history.has_grad.all()
    assert history.nonfinite[0].tolist() == [p.numel() for p in model.parameters()]
    assert history.skipped.all() and history.has_loss.all() and np.isnan(history.loss).all()
    summary = history.summary(2)
    assert np.isnan(summary.rms).all() and summary.total_norm_nonfinite.sum() == 40
    assert summary.nonfinite.sum() == 40 * sum(p.numel() for p in model.parameters())
    assert history.histogram.sum() == 0 and np.isnan(history.underflow["fp16"]).all()


def test_every_nth_step_only(tmp_path, model):
    optimizer = sgd(model)
    with GradMonitor(model, optimizer, tmp_path, every=4) as monitor:
        train(model, monitor, optimizer, 10)
        assert monitor.step == 10
        assert monitor.history().steps.tolist() == [4, 8]


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("w", "w"), ("w", "w (2)")),
        (("w", "w", "w#2"), ("w", "w (2)", "w#2")),
        (("w", "w", "w (2)"), ("w", "w (2)", "w (2) (2)")),
    ],
)
def test_names_that_stand_twice_get_a_number(tmp_path, names, shown):
    params = [nn.Parameter(torch.ones(size)) for size in range(1, len(names) + 1)]
    for param in params:
        param.grad = torch.ones_like(param)
    with GradMonitor(list(zip(names, params)), None, tmp_path) as monitor:
        monitor.record()
        history = monitor.history()
    assert history.names == shown
    assert history.norm[0].tolist() == pytest.approx([np.sqrt(p.numel()) for p in params])


def test_two_monitors_on_one_run_are_refused(tmp_path, model):
    with (
        GradMonitor(model, None, tmp_path),
        pytest.raises(HistoryError, match=r"another monitor is recording.*notebook: call \.close\(\)"),
    ):
        GradMonitor(model, None, tmp_path)
    GradMonitor(model, None, tmp_path).close()


def test_only_rank_0_records_unless_asked(tmp_path, model, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    model(torch.ones(2, 6)).sum().backward()
    with GradMonitor(model, None, tmp_path / "a") as monitor:
        monitor.record()
        assert monitor.step == 1 and "another rank records" in repr(monitor)
    assert not (tmp_path / "a").exists()
    with GradMonitor(model, None, tmp_path / "b", all_ranks=True) as monitor:
        monitor.record()
        assert monitor.history().meta["rank"] == 1
    assert (tmp_path / "b" / "rank1" / "history.db").exists()


def test_a_monitor_that_is_let_go_ends_its_thread(tmp_path, model):
    monitor = GradMonitor(model, sgd(model), tmp_path)
    model(torch.ones(2, 6)).sum().backward()
    monitor.record()
    thread = monitor._recording.thread._thread
    del monitor
    thread.join(10)
    assert not thread.is_alive() and thread not in threading.enumerate()
    assert len(History.open(tmp_path)) == 1


def test_a_monitor_that_its_own_thread_collects_ends_too(tmp_path, model):
    dropped = threading.Event()

    class Collecting(Sink):
        def log(self, step, time, values):
            assert dropped.wait(10)
            gc.collect()

    gc.disable()
    try:
        monitor = GradMonitor(model, sgd(model), tmp_path, sinks=[Collecting()])
        model(torch.ones(2, 6)).sum().backward()
        monitor.record()
        thread, monitor.itself = monitor._recording.thread._thread, monitor
        del monitor
        dropped.set()
        thread.join(10)
    finally:
        gc.enable()
    assert not thread.is_alive()
    assert History.open(tmp_path).meta["closed"] is not None
    GradMonitor(model, None, tmp_path).close()


@pytest.mark.parametrize("wrong", ["runs/x", [1], torch.nn.Linear(1, 1)])
def test_a_wrong_optimizer_is_refused_and_leaves_the_folder_free(tmp_path, model, wrong):
    with pytest.raises(TypeError, match=r"\[GradMonitor\] optimizer: expected a torch.optim.Optimizer, got"):
        GradMonitor(model, wrong, tmp_path)
    with GradMonitor(model, None, tmp_path) as monitor:
        monitor.record()
    assert list(tmp_path.glob("history.db"))


def test_a_number_of_the_callers_own_that_is_no_argument(tmp_path, model):
    with GradMonitor(model, None, tmp_path) as monitor:
        with pytest.raises(TypeError, match=r"acc: there is no such argument; .* go into extra=\{'acc': …\}"):
            monitor.record(acc=0.5)
        assert monitor.step == 0


def test_a_folder_that_nobody_named_is_logged(tmp_path, model, monkeypatch, caplog, capsys):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO", logger="gradkern"):
        GradMonitor(model, None, tmp_path / "named").close()
        assert not caplog.records
        with GradMonitor(model, None) as monitor:
            folder = str(monitor.run_dir)
    (record,) = caplog.records
    assert record.levelname == "INFO" and folder in record.getMessage()
    assert capsys.readouterr().out == ""
