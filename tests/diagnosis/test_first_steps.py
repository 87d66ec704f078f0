"""Faults of the first steps: signals that weights or targets make too large, and inputs that are lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradkern import GradMonitor, History
from gradkern.diagnosis import diagnose
from tests.support.runs import changed, flat_loss, healthy, sloped, slow


def alarms(evidence):
    return [f.kind for f in diagnose(evidence) if f.is_alarm]


def signals(run, *levels):
    """The run with these rms of the layers' inputs, as its gradients tell them."""
    rms = run.rms.copy()
    for at, level in enumerate(levels):
        rms[:, 2 * at] = level * rms[:, 2 * at + 1]
    return changed(run, rms=rms)


def gains(run, *factors):
    norms = run.weight_norm.copy()
    for at, factor in enumerate(factors):
        norms[:, 2 * at] *= factor
    return changed(run, weight_norm=norms)


class TestSignalsThatAreRaised:
    def test_by_weights_whose_mean_is_not_zero(self):
        """Their rms says 4, but each unit adds up inputs of one sign."""
        run = signals(gains(slow(healthy(layers=3)), 1.0, 4.0, 1.0), 0.5, 0.5, 40.0)
        (finding,) = [f for f in diagnose(run) if f.is_alarm]
        assert finding.kind == "poor_initialization" and finding.layers == ("2.weight",)
        assert [r.action for r in finding.remedies[:2]] == ["he_init", "xavier_init"]

    def test_a_sum_over_many_elements_is_no_fault(self):
        """The weights do not amplify: something else adds up."""
        assert alarms(signals(slow(healthy(layers=3)), 0.5, 0.5, 40.0)) == []

    def test_large_inputs_explain_it(self):
        found = alarms(signals(gains(slow(healthy(layers=3)), 1.0, 4.0, 1.0), 60.0, 60.0, 200.0))
        assert "poor_initialization" not in found

    def test_weights_that_something_makes_up_for(self):
        """Each gain is 3, but the signal stays level (a mask, a factor)."""
        run = gains(slow(healthy()), *[3.5] * 6)
        assert alarms(signals(run, *[0.8] * 6)) == []
        assert alarms(signals(run, *0.5 * 1.5 ** np.arange(6))) == ["poor_initialization"]


class TestFaintSignals:
    def test_a_loss_that_stands_still(self):
        """Two layers of a tanh network that starts small: too few for a profile over the depth."""
        run = signals(gains(healthy(layers=2, activation="Tanh"), 0.05, 1.0), 0.8, 0.01)
        still = flat_loss(run)
        (finding,) = [f for f in diagnose(still) if f.is_alarm]
        assert finding.kind == "poor_initialization" and finding.layers == ("0.weight",)
        assert finding.remedies[0].action == "xavier_init"
        assert alarms(run) == []  # it learns all the same

    def test_steps_that_do_not_move_the_weights(self):
        """A loss that stands still is theirs."""
        run = flat_loss(signals(gains(healthy(layers=2), 0.05, 1.0), 0.8, 0.01))
        still = changed(run, update_ratio=np.full_like(run.update_ratio, 1e-8))
        assert alarms(still)[0] == "update_too_small"

    def test_an_ordinary_signal(self):
        assert alarms(flat_loss(signals(healthy(layers=2), 0.8, 0.04))) == []


class TestTargets:
    def run(self, first, error, op="mse_loss"):
        """A regression with a first loss, and the gradient of the output's bias for an error of that size."""
        run = healthy(loss=0.9 * first)
        loss = np.append([first] * 5, run.loss[5:])
        rms = run.rms.copy()
        rms[:, -1] = 2 * first / error / 32
        rms[:, -2] = 0.5 * rms[:, -1]
        return changed(
            run, loss=loss, rms=rms, facts={**run.facts, "graph": {"operations": ["relu"], "loss": op}}
        )

    def test_hundreds(self, graph):
        """A loss of unknown kind may also be a sum over a batch: it is mentioned, and no alarm."""
        found = diagnose(self.run(1e5, 300.0))
        assert found[0].kind == "exploding_gradient" and found[0].is_alarm == graph
        assert graph or "if the loss is a mean" in found[0].why
        assert found[0].evidence["first_error"] == pytest.approx(300, rel=0.01)
        assert found[0].remedies[0].action == "scale_targets"

    def test_hundreds_of_one_output(self):
        """No cross-entropy has one output."""
        run = self.run(1e5, 300.0)
        params = {**run.params, "10.weight": {**run.params["10.weight"], "shape": [1, 1024]}}
        assert diagnose(changed(run, params=params))[0].is_alarm

    @pytest.mark.parametrize(
        ("first", "error", "op"),
        [(1e5, 3.0, "mse_loss"), (2.0, 1e6, "mse_loss"), (1e5, 300.0, "nll_loss")],
        ids=["a sum over many outputs", "a bias that is normalized away", "another loss"],
    )
    def test_no_alarm(self, first, error, op):
        assert alarms(self.run(first, error, op)) == []

    def test_they_recovered(self):
        run = self.run(1e5, 300.0)
        assert alarms(changed(run, loss=1e5 * np.exp(-np.arange(200) / 20.0))) == []


def starving(decades, steps):
    """A gradient that falls over the depth, and a loss that stands still, for some of the steps."""
    run, sick = healthy(), sloped(healthy(), decades)
    rms = np.concatenate([sick.rms[:steps], run.rms[steps:]])
    loss = np.append(
        2.3 + 0.02 * np.random.default_rng(0).standard_normal(steps), 0.7 + run.loss[: 200 - steps]
    )
    return changed(run, rms=rms, loss=loss)


@pytest.mark.parametrize(
    ("decades", "steps", "found"),
    [(5.0, 60, ["vanishing_gradient"]), (5.0, 15, []), (3.1, 60, []), (3.1, 140, ["vanishing_gradient"])],
)
def test_a_run_that_starves_at_first(decades, steps, found):
    """A short time does no harm, and neither does a longer one after which the run learns well."""
    run = starving(decades, steps)
    assert alarms(run) == found
    assert steps > 100 or alarms(changed(run, loss=run.loss - 0.7 * (np.arange(200) > steps))) == []


@pytest.mark.parametrize(("equal", "found"), [((1, 5), ["poor_initialization"]), ((1,), [])])
def test_units_that_are_copies_in_some_layers(equal, found):
    """Another parameter tells the units of the others apart. One layer alone may be in front of a mean."""
    run = slow(healthy())
    largest = run.max_abs.copy()
    largest[:, equal] = run.rms[:, equal]
    assert alarms(changed(run, max_abs=largest)) == found


def test_a_layer_that_dies_where_the_gradient_had_vanished():
    """The last layers got all the steps."""
    run = sloped(flat_loss(healthy(layers=8)), 6.0)
    rms = run.rms.copy()
    rms[60:, :14] = 0
    found = [f.kind for f in diagnose(changed(run, rms=rms)) if f.is_alarm]
    assert found[0] == "vanishing_gradient" and "dead_units" in found


def test_a_bias_that_16_bits_round_away_tells_no_signal():
    """In front of a normalization it has rounding errors for a gradient."""
    run = slow(healthy(layers=4))
    rms = run.rms.copy()
    rms[:, 1:-1:2] = 3e-3 * rms[:, 0:-2:2]
    facts = {"modules": {**run.facts["modules"], "1": "BatchNorm1d"}, "optimizers": []}
    graph = {"operations": ["relu", "native_batch_norm"], "loss": ""}
    assert alarms(changed(run, rms=rms, facts={**facts, "graph": graph})) == []


@pytest.mark.parametrize("depth", [2, 6])
def test_inputs_that_are_zero_where_all_biases_are(tmp_path, depth):
    """Nothing but the bias of the outputs has a gradient."""
    torch.manual_seed(0)
    layers = [m for _ in range(depth) for m in (torch.nn.Linear(8, 8), torch.nn.ReLU())]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(8, 3))
    for module in model[::2]:
        torch.nn.init.zeros_(module.bias)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with GradMonitor(model, optimizer, tmp_path) as monitor:
        for _ in range(40):
            loss = torch.nn.functional.cross_entropy(model(torch.zeros(16, 8)), torch.randint(0, 3, (16,)))
            loss.backward()
            monitor.record(loss=loss)
            optimizer.step()
            optimizer.zero_grad()
    with History.open(tmp_path) as history:
        found = diagnose(history)
    assert found[0].kind == "no_gradient" and found[0].is_alarm
    assert set(found[0].layers) == {n for n, _ in model.named_parameters()} - {f"{2 * depth}.bias"}
