"""on_nonfinite="raise_later": when the error is raised, what it names, and that nothing is changed."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import gradkern
from gradkern.clipping import late_errors
from gradkern.clipping.late_errors import LateErrors, _Step
from gradkern.kernels.backend import NullBackend
from gradkern.policies import ZClip

MESSAGE = r"\[GradClipper\.{}\] .*an earlier step had inf or NaN in: 'b' \(2 elements\)\. Its gradients"


@pytest.fixture(params=["native", "torch"], autouse=True)
def route(request, monkeypatch):
    if request.param == "torch":
        for module in ("clipping.clipper", "clipping.route", "kernels.scale"):
            monkeypatch.setattr(f"gradkern.{module}.C", NullBackend())


WAYS = {
    "max_norm": {"max_norm": 1.0},
    "policy": {"policy": ZClip},
    "groups": {"groups": {"a": ("a", 1.0), "rest": ("*", None)}},
}


def clipper_of(way, **options):
    params = {"a": nn.Parameter(torch.ones(3)), "b": nn.Parameter(torch.ones(4))}
    arguments = {k: v() if k == "policy" else v for k, v in WAYS[way].items()}
    return params, gradkern.GradClipper(params.items(), on_nonfinite="raise_later", **arguments, **options)


def fill(params, bad):
    for p in params.values():
        p.grad = torch.full_like(p, 2.0)
    if bad:
        params["b"].grad[1:3] = torch.tensor([math.nan, -math.inf])


@pytest.mark.parametrize("way", WAYS)
def test_the_next_call_raises_and_changes_nothing(way):
    params, clipper = clipper_of(way)
    fill(params, bad=False)
    assert clipper.clip_().skip_step.item() is False
    fill(params, bad=True)
    before = [p.grad.clone() for p in params.values()]
    assert clipper.clip_().skip_step.item() is True
    for p, old in zip(params.values(), before):
        torch.testing.assert_close(p.grad, old, rtol=0, atol=0, equal_nan=True)
    fill(params, bad=False)
    with pytest.raises(RuntimeError, match=MESSAGE.format("clip_")):
        clipper.clip_()
    assert params["a"].grad.tolist() == [2.0] * 3
    clipper.clip_()  # told once
    if way != "policy":  # ZClip warms up
        want = {"max_norm": (3 / 7) ** 0.5, "groups": 1.0}[way]
        assert params["a"].grad.norm().item() == pytest.approx(want, 1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_check_raises_once(way):
    params, clipper = clipper_of(way)
    clipper.check()
    fill(params, bad=True)
    clipper.clip_()
    with pytest.raises(RuntimeError, match=MESSAGE.format("check")):
        clipper.check()
    clipper.check()


@pytest.mark.parametrize("fold", [False, True])
def test_a_fused_optimizer_skips_the_step(fold):
    params = {"a": nn.Parameter(torch.ones(3)), "b": nn.Parameter(torch.ones(4))}
    optimizer = torch.optim.SGD(params.values(), lr=0.1, fused=True)
    clipper = gradkern.GradClipper(
        params.items(), 1.0, on_nonfinite="raise_later", optimizer=optimizer, fold=fold
    )
    fill(params, bad=True)
    clipper.clip_()
    optimizer.step()
    assert all(p.tolist() == [1.0] * len(p) for p in params.values())
    with pytest.raises(RuntimeError, match="'b'"):
        clipper.clip_()


def test_a_policy_that_skips_is_no_error():
    params, clipper = clipper_of("max_norm")
    param = params["a"]
    clipper = gradkern.GradClipper(
        [param],
        policy=gradkern.policies.custom(
            lambda _: gradkern.policies.Decision(torch.ones(()), torch.tensor(True))
        ),
        on_nonfinite="raise_later",
    )
    param.grad = torch.ones(3)
    assert clipper.clip_().skip_step.item() is True
    clipper.check()
    clipper.clip_()


def test_with_a_scaler():
    params, clipper = clipper_of("max_norm")
    optimizer = torch.optim.SGD(params.values(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.zeros(()))
    fill(params, bad=True)
    clipper.clip_(scaler=scaler, optimizer=optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 4.0
    assert params["a"].tolist() == [1.0] * 3
    with pytest.raises(RuntimeError, match="'b'"):
        clipper.check()


def test_copies_start_without_errors():
    params, clipper = clipper_of("max_norm")
    fill(params, bad=True)
    clipper.clip_()
    copy.deepcopy(clipper).check()
    pickle.loads(pickle.dumps(clipper)).check()
    with pytest.raises(RuntimeError, match="'b'"):
        clipper.check()


class Event:
    """An event of a device that completes when the test says so, or when it is waited for."""

    done = False

    def query(self):
        return self.done

    def synchronize(self):
        self.done = True


def test_a_step_that_is_under_way_raises_only_once_it_has_completed(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: False)
    late, events = LateErrors(), [Event(), Event()]
    for event, bad in zip(events, [False, True]):
        late._steps.append(_Step(("a", "b"), torch.tensor([0, 2]), torch.tensor(bad), event))
    late.raise_known()
    events[0].done = True
    late.raise_known()
    assert not events[1].done
    events[1].done = True
    with pytest.raises(RuntimeError, match=MESSAGE.format("clip_")):
        late.raise_known()
    late.raise_known()


def test_check_waits_for_steps_under_way():
    late = LateErrors()
    late._steps.append(_Step(("a", "b"), torch.tensor([0, 2]), torch.tensor(True), Event()))
    with pytest.raises(RuntimeError, match=MESSAGE.format("check")):
        late.raise_all()


class Graph(TorchDispatchMode):
    """A CUDA graph on the CPU: keeps the operations of a capture and runs them again on the same memory."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result

    def replay(self):
        for function, args, kwargs, old in self.operations:
            new = function(*args, **kwargs)
            if new is not old:
                old.copy_(new)


@pytest.fixture
def capture(monkeypatch):
    """Calls a function as if a CUDA graph was captured, and returns the graph."""

    def run(function):
        with monkeypatch.context() as patch, Graph() as graph:
            patch.setattr(late_errors, "capturing", lambda tensor: True)
            function()
        return graph

    return run


class Captured:
    """Steps in graphs: each replay reads what `counts` says at the time."""

    def __init__(self, capture, graphs, names=("a", "b")):
        self.late, self.counts = LateErrors(), torch.tensor([0, 0])
        self.late._replays.append(late_errors._Replays(names, torch.device("cpu")))
        self.graphs = [
            capture(lambda: self.late.add(self.counts.any(), self.counts, names)) for _ in range(graphs)
        ]

    def replay(self, counts, graph=0):
        self.counts.copy_(torch.tensor(counts))
        self.graphs[graph].replay()


def test_check_sees_every_replay_since_the_last_check(capture):
    steps = Captured(capture, graphs=1)
    for counts in ([0, 0], [0, 2], [5, 0], [0, 0]):
        steps.replay(counts)
    with pytest.raises(RuntimeError, match=MESSAGE.format("check")) as caught:
        steps.late.raise_all()
    assert str(caught.value).endswith("It is the first of 2 such replays.")
    steps.late.raise_all()
    steps.replay([0, 0])
    steps.late.raise_all()
    steps.replay([3, 0])
    with pytest.raises(RuntimeError, match=r"in: 'a' \(3 elements\)\. (?!.*replays)"):
        steps.late.raise_all()


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_check_sees_the_replays_of_every_graph(capture, bad):
    steps = Captured(capture, graphs=3)
    for graph in range(3):
        steps.replay([0, 2] if graph == bad else [0, 0], graph)
    with pytest.raises(RuntimeError, match=MESSAGE.format("check")):
        steps.late.raise_all()
    steps.late.raise_all()


def test_a_capture_with_other_parameters_needs_a_step_before(capture):
    steps, others = Captured(capture, graphs=1), ("a", "b", "c")
    bad, counts = torch.tensor(True), torch.tensor([0, 0, 1])
    with pytest.raises(RuntimeError, match=r"run clip_\(\) once outside the graph"):
        capture(lambda: steps.late.add(bad, counts, others))
    steps.late._replays.append(late_errors._Replays(others, torch.device("cpu")))
    capture(lambda: steps.late.add(bad, counts, others)).replay()
    steps.replay([0, 0])  # the older graph is still seen
    with pytest.raises(RuntimeError, match=r"'c' \(1 elements\)"):
        steps.late.raise_all()


@pytest.mark.parametrize("way", WAYS)
def test_a_clipper_whose_steps_are_captured(way, monkeypatch):
    """`clip_` takes the same path as in a capture: only `check` raises, and for every bad step."""
    params, clipper = clipper_of(way)
    fill(params, bad=False)
    clipper.clip_()
    clipper._late._replays.append(late_errors._Replays(clipper.names, torch.device("cpu")))
    monkeypatch.setattr(late_errors, "capturing", lambda tensor: True)
    for bad in (False, True, True, False):
        fill(params, bad)
        assert clipper.clip_().skip_step.item() is bad
    with pytest.raises(RuntimeError, match=MESSAGE.format("check")) as caught:
        clipper.check()
    assert "the first of 2 such replays" in str(caught.value)
    clipper.check()
