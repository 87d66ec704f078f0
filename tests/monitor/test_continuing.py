"""Continuing a run: which models may continue it, and the warning if the step is unknown."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gradkern
from gradkern.history.format import HistoryError


def network(*widths, bias=True):
    return nn.Sequential(*(nn.Linear(a, b, bias) for a, b in itertools.pairwise(widths)))


def train(model, run, steps=2, clipper=None, optimizer=None, before=lambda monitor: None, **given):
    """Record some steps; returns the messages of the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with gradkern.GradMonitor(model, optimizer, run) as monitor:
            before(monitor)
            for number in range(steps):
                for p in tensors(model):
                    p.grad = torch.ones_like(p)
                stats = None if clipper is None else clipper.clip_()
                monitor.record(stats, **{key: value + number for key, value in given.items()})
    assert {w.filename for w in caught} <= {__file__}
    return [str(w.message) for w in caught]


def tensors(model):
    return list(model.parameters() if isinstance(model, nn.Module) else model)


def steps_of(run):
    with gradkern.History.open(run) as history:
        return history.steps.tolist()


@pytest.fixture
def run(tmp_path):
    train(network(3, 4, 2), tmp_path / "run")
    return tmp_path / "run"


def test_appending_is_said_once(run):
    (message,) = train(network(3, 4, 2), run)
    assert message.startswith(f"[GradMonitor.record] run_dir {str(run)!r}: the run has steps up to 2 of an ")
    assert "appended to it from step 3 on. Use a new run_dir for a new training" in message
    assert "load_state_dict" in message and "step=" in message
    assert steps_of(run) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "wrong", [{"loss": "a"}, {"loss": torch.ones(2)}, {"extra": {"a": torch.ones(65)}}, {"acc": 0.5}], ids=str
)
def test_a_call_that_raises_appends_nothing_and_says_nothing_of_it(run, wrong):
    def refused(monitor):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with pytest.raises((TypeError, ValueError)):
                monitor.record(**wrong)
        assert not caught and monitor.step == 2

    (message,) = train(network(3, 4, 2), run, before=refused)
    assert "appended to it from step 3 on" in message
    assert steps_of(run) == [1, 2, 3, 4]


def test_nothing_is_said_of_a_new_run_or_one_that_has_no_steps(tmp_path):
    gradkern.GradMonitor(network(3, 2), run_dir=tmp_path / "run").close()
    assert train(network(3, 2), tmp_path / "run") == train(network(3, 2), tmp_path / "other") == []


def test_nothing_is_said_where_the_step_is_told(run):
    assert train(network(3, 4, 2), run, before=lambda monitor: monitor.load_state_dict({"step": 1})) == []
    assert steps_of(run) == [1, 2, 3]
    assert train(network(3, 4, 2), run, step=4) == []
    assert steps_of(run) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("given", ["step", "a state"])
def test_a_training_that_begins_again_is_said_once_and_keeps_the_old_steps(run, given):
    """A new training that writes to an old folder, in a framework that numbers its steps itself."""
    if given == "step":
        (message,) = train(network(3, 4, 2), run, steps=1, step=1)
    else:
        (message,) = train(
            network(3, 4, 2), run, steps=1, before=lambda monitor: monitor.load_state_dict({"step": 0})
        )
    assert message.startswith(f"[GradMonitor.record] run_dir {str(run)!r}: the run has steps up to 2 of an ")
    assert "recorded from step 1 on, which replaces all of them. Use a new run_dir" in message
    assert steps_of(run) == [1]
    with gradkern.History.open(run, superseded=True) as history:
        assert history.steps.tolist() == [1, 2, 1]


def test_returning_to_the_first_step_within_a_training_is_not_a_new_one(tmp_path):
    def rolled_back(monitor):
        train_here(monitor, 3)
        monitor.load_state_dict({"step": 0})

    model = network(3, 2)

    def train_here(monitor, count):
        for _ in range(count):
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            monitor.record()

    assert train(model, tmp_path, before=rolled_back) == []
    assert steps_of(tmp_path) == [1, 2]


def test_the_first_checkpoint_of_a_run_with_every(tmp_path):
    """The checkpoint is from before the first recorded step, so that all of them are replaced."""
    model = network(3, 2)

    def record(state, count):
        with gradkern.GradMonitor(model, run_dir=tmp_path, every=4) as monitor:
            if state is not None:
                monitor.load_state_dict(state)
            for _ in range(count):
                for p in model.parameters():
                    p.grad = torch.ones_like(p)
                monitor.record()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record(None, 9)
        record({"step": 2}, 3)
    assert steps_of(tmp_path) == [4]


def test_a_monitor_that_only_looks_says_nothing(run):
    assert train(network(3, 4, 2), run, steps=0) == []


OTHERS = {
    "a shape": (network(3, 5, 2), r"0\.weight has shape \(5, 3\) here and \(4, 3\) in the run"),
    "one more": (network(3, 4, 2, 2), r"this model has 2\.weight, the run does not"),
    "one less": (network(3, 4), r"this model has no 1\.weight"),
    "other names": (
        nn.ModuleDict({"a": network(3, 4, 2)}),
        r"this model has a\.0\.weight, the run does not",
    ),
    "no bias": (network(3, 4, 2, bias=False), r"this model has no 0\.bias"),
}


@pytest.mark.parametrize(("model", "difference"), OTHERS.values(), ids=OTHERS)
def test_another_model_is_refused_and_the_run_is_left_as_it_is(run, model, difference):
    before = (run / "history.db").read_bytes()
    expected = rf"\[GradMonitor\] run_dir '{run}': the run is of another model: "
    with pytest.raises(HistoryError, match=f"{expected}{difference}. Use a new run_dir for this model"):
        gradkern.GradMonitor(model, run_dir=run)
    assert (run / "history.db").read_bytes() == before
    train(network(3, 4, 2), run)  # the lock is free again
    assert steps_of(run) == [1, 2, 3, 4]


def test_the_same_model_in_a_wrapper_or_partly_frozen(run):
    model = network(3, 4, 2)
    model[0].requires_grad_(False)
    gradkern.GradMonitor(nn.DataParallel(model), run_dir=run).close()


def test_a_clipper_that_leaves_parameters_out(tmp_path):
    for _ in range(2):
        model = network(3, 4, 2)
        train(model, tmp_path, clipper=gradkern.GradClipper(model[1], 1.0))
    with gradkern.History.open(tmp_path) as history:
        assert dict(zip(history.names, history.has_grad[-1].tolist())) == {
            "0.weight": False, "0.bias": False, "1.weight": True, "1.bias": True
        }  # fmt: skip
    with pytest.raises(HistoryError, match=r"1\.weight has shape \(3, 4\) here and \(2, 4\) in the run"):
        gradkern.GradMonitor(network(3, 4, 3), run_dir=tmp_path)


def test_parameters_without_names_take_those_of_the_clipper(tmp_path):
    for _ in range(2):
        model = network(3, 4, 2)
        train(tensors(model), tmp_path, clipper=gradkern.GradClipper(model, 1.0))
    assert steps_of(tmp_path) == [1, 2, 3, 4]


def test_parameters_without_names_are_compared_by_position(tmp_path):
    train(tensors(network(3, 2)), tmp_path)
    with pytest.raises(HistoryError, match=r"0 has shape \(3, 2\) here and \(2, 3\) in the run"):
        gradkern.GradMonitor(tensors(network(2, 3)), run_dir=tmp_path)


def test_several_models(tmp_path):
    models = {"G": network(2, 3), "D": network(3, 1)}

    def record(models):
        with gradkern.GradMonitor(models, run_dir=tmp_path) as monitor:
            monitor.load_state_dict({"step": 1})
            for p in (*models["G"].parameters(), *models["D"].parameters()):
                p.grad = torch.ones_like(p)
            monitor.record()

    record(models)
    record(models)
    with pytest.raises(HistoryError, match=r"D\.0\.weight has shape \(2, 3\) here and \(1, 3\) in the run"):
        record({**models, "D": network(3, 2)})


def test_a_model_that_has_grown_during_the_run(run):
    model = network(3, 4, 2)

    def grow(monitor):
        monitor.load_state_dict({"step": 2})
        model.append(nn.Linear(2, 2))

    assert train(model, run, before=grow) == []
    assert train(network(3, 4, 2, 2), run, step=5) == []
    with pytest.raises(HistoryError, match=r"this model has no 2\.weight"):
        gradkern.GradMonitor(network(3, 4, 2), run_dir=run)


def test_lazy_parameters_are_not_compared(tmp_path):
    train(nn.Sequential(nn.Linear(3, 2)), tmp_path)
    gradkern.GradMonitor(nn.Sequential(nn.LazyLinear(5)), run_dir=tmp_path).close()


def test_a_warning_of_the_writing_thread_points_to_the_line_that_built_the_monitor(tmp_path):
    model = network(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with (
        pytest.warns(gradkern.GradkernWarning) as caught,
        gradkern.GradMonitor(model, optimizer, tmp_path, on_finding="warn") as monitor,
    ):
        for number in range(30):
            for p in model.parameters():
                p.grad = torch.full_like(p, np.nan if number > 5 else 1.0)
            monitor.record()
            optimizer.step()
    assert {w.filename for w in caught} == {__file__}
    line = Path(__file__).read_text(encoding="utf-8").splitlines()[caught[0].lineno - 1]
    assert 'on_finding="warn"' in line
