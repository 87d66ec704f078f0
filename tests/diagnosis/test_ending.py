"""What the operations at the end of a run's graph tell: a negated loss, an activation in front of softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gradkern import GradMonitor, History
from gradkern.diagnosis import diagnose
from tests.support.runs import WIDTH, changed, healthy

STEPS = 40


def of_graph(run, *operations, loss=""):
    graph = {"operations": ["addmm", "relu", "addmm", *operations], "loss": loss}
    return changed(run, facts={**run.facts, "graph": graph})


def actions(found):
    return [r.action for f in found for r in f.remedies]


def trained(folder, loss_of, *, head=()):
    """The findings on blobs of five classes; `loss_of` is a function of outputs, targets and the step."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 5), *head)
    made, centers = torch.optim.Adam(model.parameters(), 1e-2), torch.randn(5, 8)
    with GradMonitor(model, made, folder) as monitor:
        for step in range(STEPS):
            y = torch.randint(0, 5, (64,))
            loss = loss_of(model(centers[y] + torch.randn(64, 8)), y, step)
            made.zero_grad()
            loss.backward()
            monitor.record(loss=loss)
            made.step()
    with History.open(folder) as history:
        return diagnose(history)


def chosen(outputs, y):
    return F.log_softmax(outputs, 1)[torch.arange(len(y)), y]


NEGATED = {
    "cross_entropy": lambda out, y, _: -F.cross_entropy(out, y),
    "unreduced": lambda out, y, _: -F.cross_entropy(out, y, reduction="none").mean(),
    "mse": lambda out, y, _: -F.mse_loss(out, F.one_hot(y, 5).float()),
    "accumulated": lambda out, y, _: -F.cross_entropy(out, y) / 4,
    "log_probability": lambda out, y, _: chosen(out, y).mean(),
    "gathered": lambda out, y, _: F.log_softmax(out, 1).gather(1, y[:, None]).mean(),
}
MEANT = {
    "policy gradient": lambda out, y, step: -(chosen(out, y) * np.cos(step)).mean(),
    "weighted": lambda out, y, step: F.cross_entropy(out, y) * -1.0,
    "entropy bonus": lambda out, y, _: (F.softmax(out, 1) * F.log_softmax(out, 1)).sum(1).mean(),
    "likelihood of a density": lambda out, y, _: (
        -torch.distributions.Normal(out, 0.1).log_prob(out[:1]).mean()
    ),
    "similarity": lambda out, y, _: -F.cosine_similarity(out, F.one_hot(y, 5).float()).mean(),
    "generator": lambda out, y, _: -F.binary_cross_entropy_with_logits(out, torch.zeros_like(out)),
    "two losses": lambda out, y, _: -F.mse_loss(out, torch.ones_like(out)) + F.cross_entropy(out, y),
}


#: Their numbers could be those of a score, such as a log-likelihood. Only the graph tells.
LIKE_SCORES = {"mse", "accumulated"}


@pytest.mark.parametrize("name", NEGATED)
def test_a_negated_loss(tmp_path, name, graph):
    found = trained(tmp_path, NEGATED[name])
    if name in LIKE_SCORES and not graph:
        assert [f.kind for f in found if f.is_alarm] == []
        return
    assert (found[0].kind, found[0].severity) == ("exploding_gradient", "severe")
    assert found[0].remedies[0].action == "check_sign" and "minus" in found[0].remedies[0].because


@pytest.mark.parametrize("name", MEANT)
def test_a_loss_that_is_meant_to_be_negative(tmp_path, name, graph):
    """The graph leaves a cross-entropy alone that something multiplies; its numbers are those of a negated
    one."""
    found = {evidence for f in trained(tmp_path, MEANT[name]) for evidence in f.evidence}
    assert ("negated" in found) == (name == "weighted" and not graph)


class TestEvidence:
    """The graph alone is not enough: what is recorded has to be below zero, and to fall."""

    def test_a_loss_that_falls_below_zero(self):
        run = of_graph(healthy(), "nll_loss", "neg", loss="nll_loss")
        fallen = changed(run, loss=-np.log(WIDTH) * np.geomspace(1, 100, 200))
        assert actions(diagnose(fallen))[0] == "check_sign"

    @pytest.mark.parametrize(("scaled", "first"), [(True, ["check_sign"]), (False, [])])
    def test_a_loss_scale_behind_it(self, scaled, first, graph):
        """It multiplies the loss that `backward` is called on. What else multiplies may be an advantage."""
        run = of_graph(healthy(), "nll_loss", "neg", "mul", loss="nll_loss")
        fallen = changed(
            run, loss=-2.3 * np.geomspace(1, 100, 200), facts={**run.facts, "loss_scale": scaled}
        )
        assert actions(diagnose(fallen))[:1] == (first if graph else [])

    def test_a_score_that_is_recorded_with_a_minus(self):
        """It rises to zero as the model learns."""
        run = of_graph(healthy(), "nll_loss", "neg", loss="nll_loss")
        assert "check_sign" not in actions(diagnose(changed(run, loss=-run.loss)))

    def test_without_the_graph_a_negative_loss_may_be_meant(self):
        fallen = changed(healthy(), loss=-2.3 * np.geomspace(1, 30, 200))
        assert "check_sign" not in actions(diagnose(fallen))

    def test_it_comes_before_what_it_causes(self):
        run = of_graph(healthy(), "mse_loss", "neg", loss="mse_loss")
        loss, norm = -np.geomspace(1, 1e30, 200), np.geomspace(1, 1e30, 200)
        loss[150:], norm[150:] = np.nan, np.nan
        nonfinite = run.nonfinite.copy()
        nonfinite[150:] = 1
        found = diagnose(changed(run, loss=loss, total_norm=norm, nonfinite=nonfinite))
        assert [f.remedies[0].action for f in found[:2]] == ["check_sign", "check_sign"]


def test_a_softmax_in_front_of_cross_entropy(tmp_path):
    found = trained(tmp_path, lambda out, y, _: F.cross_entropy(out, y), head=[torch.nn.Softmax(1)])
    assert (found[0].kind, found[0].severity, found[0].layers) == (
        "saturation",
        "warning",
        ("2.weight", "2.bias"),
    )
    assert found[0].remedies[0].action == "plain_outputs" and "0.90" in found[0].why  # ln(1 + 4 / e)


@pytest.mark.parametrize(
    ("order", "moved", "first"),
    [
        (["0.weight"], True, "record_in_time"),
        ([], True, "record_in_time"),  # steps move weights only by gradients
        ([], False, "use_parameters"),
    ],
)
def test_gradients_that_were_cleared_before_they_were_recorded(order, moved, first):
    run = healthy()
    if not moved:
        norms = np.broadcast_to(run.weight_norm[:1], run.weight_norm.shape)
        run = changed(run, weight_norm=norms, update_ratio=np.zeros_like(run.update_ratio))
    none = changed(run, has_grad=np.zeros_like(run.has_grad), rms=np.zeros_like(run.rms))
    none = changed(none, facts={**run.facts, "graph": {"order": order, "operations": ["addmm"]}})
    assert diagnose(none)[0].kind == "no_gradient" and actions(diagnose(none))[0] == first


class TestOutputs:
    """Synthetic losses of `WIDTH` classes: guessing has 3.47, and a second softmax allows 2.52 to 3.52."""

    def run(self, *operations, end=3.3, zeros=0):
        made = healthy()
        zero = made.zeros.copy()
        zero[:, -1] = zeros
        loss = np.linspace(3.47, end, 200)
        last = {"softmax": "Softmax", "relu": "ReLU"}.get(operations[0])
        modules = made.facts["modules"] | ({"11": last} if last else {})
        made = changed(made, zeros=zero, loss=loss, facts={**made.facts, "modules": modules})
        return of_graph(made, *operations, "log_softmax", "nll_loss", loss="nll_loss")

    @pytest.mark.parametrize(("end", "kinds"), [(3.3, ["saturation"]), (2.53, []), (1.5, [])])
    def test_softmax(self, end, kinds):
        """Nothing if all outputs are right, or if the losses show that it belongs to another branch."""
        assert [f.kind for f in diagnose(self.run("softmax", end=end)) if f.is_alarm] == kinds

    @pytest.mark.parametrize(
        ("end", "zeros", "kinds"), [(3.0, 3, ["dead_units"]), (0.5, 3, []), (3.0, 0, [])]
    )
    def test_relu(self, end, zeros, kinds):
        """Nothing if the model learns well, or if every output has a gradient."""
        found = [f for f in diagnose(self.run("relu", end=end, zeros=zeros)) if f.is_alarm]
        assert [f.kind for f in found] == kinds
        assert all(f.remedies[0].action == "plain_outputs" for f in found)

    def test_plain_outputs(self):
        assert diagnose(self.run("addmm", end=3.0, zeros=3)) == []
