"""Facts about the model, its optimizers and the graph of the loss; periodic statistics of the first steps."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradkern import GradClipper, GradMonitor
from gradkern.monitor import graph
from gradkern.monitor.periodic.schedule import is_due


def recorded(tmp_path, model, make_loss, steps=5, *, optimizer=None, as_given=lambda loss: loss, **options):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.01)
    clipper = GradClipper(model, 1.0)
    with GradMonitor(model, optimizer, tmp_path, **options) as monitor:
        for step in range(1, steps + 1):
            loss = make_loss(step)
            loss.backward()
            monitor.record(clipper.clip_(), loss=as_given(loss))
            optimizer.step()
            optimizer.zero_grad()
        return monitor.history()


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(6, 3)  # registered before a layer that runs earlier
        self.stem = nn.Linear(4, 6)
        self.block = nn.Linear(6, 6)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + torch.tanh(self.block(x)))


def cross_entropy(model):
    return lambda step: F.cross_entropy(model(torch.randn(5, 4)), torch.randint(0, 3, (5,)))


def test_the_graph_tells_order_serial_parameters_and_operations(tmp_path):
    model = Residual()
    history = recorded(tmp_path, model, cross_entropy(model))
    layers = ("stem", "block", "head")
    assert history.facts["graph"] == {
        "order": [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")],
        "operations": ["addmm", "addmm", "tanh", "add", "addmm", "log_softmax", "nll_loss"],
        "serial": ["stem.weight", "stem.bias", "head.weight", "head.bias"],
        "loss": "nll_loss",
        "unused": ["unused.weight", "unused.bias"],
        "walks": 4,
    }
    assert history.facts["modules"] == {
        "": "Residual", "unused": "Linear", "head": "Linear", "stem": "Linear", "block": "Linear"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "names"), [(torch.float16, {"0.weight", "0.bias"}), (torch.bfloat16, set())]
)
def test_the_graph_tells_gradients_that_are_cast_from_float16(tmp_path, dtype, names):
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6))

    def loss(step):
        with torch.autocast("cpu", dtype=dtype):
            return model(torch.randn(5, 4)).float().square().mean()

    assert set(recorded(tmp_path, model, loss).facts["graph"].get("float16", ())) == names


def test_an_expert_that_is_not_in_the_first_step_is_not_unused(tmp_path):
    experts = nn.ModuleList(nn.Linear(4, 3) for _ in range(3))

    def loss(step):
        return experts[step % 2](torch.randn(5, 4)).square().mean()

    facts = recorded(tmp_path, experts, loss).facts["graph"]
    assert facts["unused"] == ["2.weight", "2.bias"] and facts["serial"] == []
    assert set(facts["order"]) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_recurrent_and_tied_parameters_are_serial(tmp_path):
    cell, head = nn.RNNCell(4, 8), nn.Linear(8, 1)
    model = nn.ModuleDict({"head": head, "cell": cell})

    def loss(step):
        hidden = torch.zeros(3, 8)
        for _ in range(50):
            hidden = cell(torch.randn(3, 4), hidden)
        return F.binary_cross_entropy_with_logits(head(hidden), torch.ones(3, 1))

    facts = recorded(tmp_path, model, loss).facts["graph"]
    assert facts["loss"] == "binary_cross_entropy_with_logits"
    assert facts["order"][-2:] == ["head.weight", "head.bias"]
    assert {"cell.weight_hh", "cell.bias_hh", "head.weight", "head.bias"} <= set(facts["serial"])


def test_walks_are_bounded_and_keep_no_graph(tmp_path, monkeypatch):
    model = nn.Linear(4, 4)
    x = torch.randn(2, 4)
    for _ in range(300):
        x = model(x)
    facts = graph.GraphFacts()
    names = {id(p): name for name, p in model.named_parameters()}
    loss = x.sum()
    monkeypatch.setattr(graph, "NODES", 500)
    assert not graph.GraphFacts().add(loss, names)
    monkeypatch.setattr(graph, "SECONDS", 1e-6)
    slow = graph.GraphFacts()
    assert not slow.add(loss, names) and not slow.add(loss, names) and slow._seconds < 0
    assert facts.add(loss, names) and facts.to_json(["weight", "bias"])["unused"] == []
    node = weakref.ref(x)
    del x, loss
    gc.collect()
    assert node() is None


@pytest.mark.parametrize(("as_given", "count"), [(lambda loss: loss, 4), (lambda loss: loss.item(), 3)])
def test_no_walk_is_made_after_the_fourth_step(tmp_path, monkeypatch, as_given, count):
    walked = []
    monkeypatch.setattr(graph._Walk, "run", lambda *_: walked.append(1))
    model = Residual()
    recorded(tmp_path, model, cross_entropy(model), steps=7, as_given=as_given)
    assert len(walked) == count


def test_paths_beyond_any_number_are_counted(tmp_path):
    model = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def loss(step):
        x = model[0](torch.randn(2, 4))
        for _ in range(200):  # twice as many paths each time
            x = torch.tanh(x) + torch.sin(x)
        x = model[1](x)
        return (model[2](x) + x).sum()

    assert recorded(tmp_path, model, loss).facts["graph"]["serial"] == [
        "0.weight", "0.bias", "1.weight", "1.bias"
    ]  # fmt: skip


def test_optimizers_and_types_of_gradients_are_noted(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3).bfloat16())
    groups = [{"params": model[0].parameters()}, {"params": [model[1].weight], "lr": torch.tensor(0.5)}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.125)

    def loss(step):
        return model[1](model[0](torch.randn(2, 4)).bfloat16()).float().square().sum()

    facts = recorded(tmp_path, model, loss, optimizer=optimizer).facts
    first, second = facts["optimizers"]
    assert (first["class"], first["name"], first["parameters"]) == ("AdamW", "", ["0.weight", "0.bias"])
    assert (first["betas"], first["eps"], first["weight_decay"]) == ([0.9, 0.999], 1e-8, 0.125)
    assert (first["lr"], second["lr"], second["parameters"]) == (0.01, 0.5, ["1.weight"])
    assert facts["gradient_dtypes"] == {
        "torch.float32": ["0.weight", "0.bias"], "torch.bfloat16": ["1.weight", "1.bias"]
    }  # fmt: skip
    assert facts["loss_scale"] is False


def test_looks_are_early_and_then_rare():
    assert [s for s in range(0, 350) if is_due(s, 100)] == [0, 1, 2, 4, 8, 16, 32, 64, 100, 200, 300]
    assert [s for s in range(1, 8) if is_due(s, 1)] == [1, 2, 3, 4, 5, 6, 7]
    assert not any(is_due(s, 0) for s in range(9))


def test_zeros_and_elements_that_are_never_other_than_zero(tmp_path):
    model = nn.Sequential(nn.Linear(4, 50), nn.ReLU(), nn.Linear(50, 3))
    with torch.no_grad():
        model[0].bias[:20] = -1e3  # these units are dead
        model[0].bias[20:] = 1e3
    half = torch.zeros(3)
    half[0] = 1.0

    def loss(step):  # one output of the last layer has a gradient, another one only at step 2
        weight = half + torch.tensor([0.0, float(step == 2), 0.0])
        return (model(torch.randn(2, 4)) * weight).sum()

    history = recorded(tmp_path, model, loss, steps=10)
    looked = history.steps[(history.zeros >= 0).any(axis=1)]
    assert (
        looked.tolist() == [1, 2, 4, 8] == history.update_steps.tolist() == history.histogram_steps.tolist()
    )
    assert history.zeros[0].tolist() == [-1, 20, -1, 2] and history.zeros[1].tolist() == [-1, 20, -1, 1]
    dead = np.float32(30 / 50)
    np.testing.assert_allclose(history.ever_nonzero, [dead, dead, dead * 2 / 3, 2 / 3], rtol=1e-6)


def test_a_parameter_without_gradient_is_not_looked_at(tmp_path):
    model = Residual()
    history = recorded(tmp_path, model, cross_entropy(model), steps=2)
    absent = [name.startswith("unused") for name in history.names]
    assert np.isnan(history.ever_nonzero[absent]).all() and (history.zeros[:, absent] == -1).all()
    assert np.isfinite(history.ever_nonzero[np.logical_not(absent)]).all()
