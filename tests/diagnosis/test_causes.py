"""Faults of part of a model or part of a run: one loud matrix, copies of one unit, norms that come back."""

from __future__ import annotations

import numpy as np
import pytest

from gradkern.diagnosis import Finding, diagnose
from gradkern.diagnosis.case import Case
from gradkern.diagnosis.precedence import in_order
from gradkern.diagnosis.remedies import with_remedies
from tests.support.runs import changed, flat_loss, healthy


def alarms(run):
    return [finding for finding in diagnose(run) if finding.is_alarm]


def kinds(run):
    return [finding.kind for finding in alarms(run)]


class TestInitialWeights:
    def scaled(self, factor, columns, **kwargs):
        run = healthy(**kwargs)
        norms = run.weight_norm.copy()
        norms[:, columns] *= factor
        return changed(run, weight_norm=norms)

    def test_one_matrix_alone(self):
        (finding,) = alarms(self.scaled(40, 10))
        assert finding.kind == "poor_initialization" and finding.layers == ("10.weight",)
        assert finding.evidence["gain"] == pytest.approx(40, rel=0.1)

    @pytest.mark.parametrize(("factor", "activation"), [(5, "ReLU"), (40, "LayerNorm"), (40, "Sin")])
    def test_one_that_may_be_large(self, factor, activation):
        """The gain is below ten, a normalization follows, or the weights are frequencies."""
        assert kinds(self.scaled(factor, 0, activation=activation)) == []

    @pytest.mark.parametrize(("alive", "found"), [(1.0, []), (0.3, ["poor_initialization"])])
    def test_masked_elements_do_not_count(self, alive, found):
        """Only a fifth of the elements ever have a gradient. Without a mask, the reason is dead units."""
        run = self.scaled(3.2, slice(2, 10, 2), bias=True)
        rms = run.rms.copy()
        rms[:, 4::2] *= 2.0 ** np.arange(1, 5)  # the signal grows
        run = changed(run, rms=rms)
        ever = np.where(np.arange(12) % 2, alive, 0.2).astype(np.float32)
        ever[[0, 10]] = 1.0
        assert [k for k in kinds(changed(run, ever_nonzero=ever)) if k != "dead_units"] == found

    @pytest.mark.parametrize(("factor", "found"), [(2, []), (7, ["poor_initialization"])])
    def test_two_layers_together(self, factor, found):
        assert kinds(self.scaled(factor, slice(0, None, 2), layers=2, activation="Tanh")) == found

    @pytest.mark.parametrize(
        ("plateau", "gradient", "found"), [(150, 1e-9, True), (20, 1e-9, False), (150, 1, False)]
    )
    def test_a_signal_that_fades_until_training_mends_it(self, plateau, gradient, found):
        """Biases that start at zero add no signal, but the output's bias learns from the first step on."""
        run = self.scaled(0.05, slice(0, None, 2))
        rms = run.rms.copy()
        rms[:, 0::2] *= gradient
        random = 0.002 * np.random.default_rng(0).standard_normal(200)
        loss = 2.3 - 1.5 * np.clip((np.arange(200) - plateau) / 40, 0, 1) + random
        said = kinds(changed(run, rms=rms, loss=loss))
        assert ("poor_initialization" in said) == found


def test_layers_in_front_of_a_rounding():
    run = healthy(activation="SiLU")
    rms = run.rms.copy()
    rms[:, :6] = 0
    graph = {"operations": ["addmm", "silu", "round"]}
    (finding,) = alarms(changed(run, rms=rms, facts={**run.facts, "graph": graph}))
    assert finding.kind == "no_gradient" and finding.layers == run.names[:6] and "round" in finding.why


def test_smooth_units_that_a_bias_may_have_switched_off():
    run = healthy(activation="SiLU")
    rms, norms = run.rms.copy(), run.weight_norm.copy()
    rms[:, :6] = 0
    norms[:, 5] = 30 * np.sqrt(32)
    assert kinds(changed(run, rms=rms, weight_norm=norms)) == ["dead_units"]


@pytest.mark.parametrize(("rest", "found"), [([], "no_gradient"), (["abs"], "dead_units")])
def test_a_sign_beside_an_absolute_value_has_a_slope(graph, rest, found):
    """As in ``x.sign() * x.abs().sqrt()``. Without the graph neither is seen."""
    run = healthy()
    rms = run.rms.copy()
    rms[:, :6] = 0
    facts = {**run.facts, "graph": {"operations": ["addmm", "relu", "sign", *rest]}}
    assert kinds(changed(run, rms=rms, facts=facts)) == [found if graph else "dead_units"]


@pytest.mark.parametrize(("shifted", "bias", "found"), [(0, 0.0, True), (2, 0.0, True), (0, 0.1, False)])
def test_units_of_a_frozen_layer_that_are_inactive(shifted, bias, found):
    """What is behind them gets no gradient, but for the last bias."""
    run = healthy()
    params = {n: {**p, "trainable": n[0] not in "02"} for n, p in run.params.items()}
    rms, norms, there = run.rms.copy(), run.weight_norm.copy(), run.has_grad.copy()
    rms[:, 4:-1], there[:, :4], norms[:, 1::2] = 0, False, 0
    norms[:, 5], norms[:, 3] = bias, 20 * norms[:, 2] * (shifted > 0)
    rms[:, :4] = np.nan
    run = changed(run, rms=rms, has_grad=there, weight_norm=norms, params=params, total_norm=run.total_norm)
    findings = [f for f in alarms(run) if "frozen" in f.why]
    assert bool(findings) == found and all(f.kind == "dead_units" for f in findings)
    if found:
        assert findings[0].layers == (("2.weight", "2.bias") if shifted else run.names[:4])


@pytest.mark.parametrize(
    ("evidence", "first"), [({"crest": 1.0}, "poor_initialization"), ({}, "vanishing_gradient")]
)
def test_copies_of_one_unit_explain_what_they_do_to_gradients(evidence, first):
    constant = Finding("poor_initialization", "severe", (), 1, 80, evidence, "All are equal.")
    vanishing = Finding("vanishing_gradient", "severe", (), 1, 80, {}, "The first layers hardly learn.")
    assert in_order([vanishing, constant])[0].kind == first


@pytest.mark.parametrize(
    ("evidence", "lossy", "first"),
    [
        ({"gain": 6.0, "layers": 4.0}, 1.0, "poor_initialization"),
        ({"gain": 6.0, "layers": 4.0}, 0.0, "nonfinite_gradient"),  # the loss is still finite
        ({"gain": 3.0, "layers": 2.0}, 1.0, "nonfinite_gradient"),
    ],
)
def test_weights_that_overflow_at_the_first_step(evidence, lossy, first):
    large = Finding("poor_initialization", "severe", (), 1, 80, evidence, "The weights are too large.")
    bad = Finding("nonfinite_gradient", "severe", (), 1, 80, {"nonfinite_loss": lossy}, "All are NaN.")
    assert in_order([bad, large])[0].kind == first
    late = Finding("nonfinite_gradient", "severe", (), 9, 80, {"nonfinite_loss": lossy}, "All are NaN.")
    assert in_order([late, large])[0].kind == "nonfinite_gradient"


@pytest.mark.parametrize(
    ("largest", "numbers", "first"),
    [
        (0.3, {"lag_1_correlation": -0.9}, "loss_oscillating"),
        (0.9, {"lag_1_correlation": -0.9}, "update_too_large"),  # they go to and fro by themselves
        (0.3, {"travel": 0.5}, "update_too_large"),
    ],
)
def test_kinds_of_batches_in_turn_explain_large_steps(largest, numbers, first):
    turns = Finding(
        "loss_oscillating", "warning", (), 1, 80, {"in_turn": 1.0, **numbers}, "It goes up and down."
    )
    large = Finding("update_too_large", "severe", (), 1, 80, {"largest_update_ratio": largest}, "Large.")
    assert in_order([large, turns])[0].kind == first


@pytest.mark.parametrize(
    ("severity", "largest", "first"),
    [("severe", 12.0, "update_too_large"), ("warning", 12.0, "poor_initialization"), ("severe", 0.3, None)],
)
def test_weights_that_are_thrown_at_once_did_not_want_a_gradient(severity, largest, first):
    numbers = {"decades_of_forward_signal": -4.0, "first_slope": 0.005}
    faint = Finding("poor_initialization", "warning", (), 1, 80, numbers, "The signal fades.")
    thrown = Finding("update_too_large", severity, (), 1, 80, {"largest_update_ratio": largest}, "Large.")
    assert in_order([faint, thrown])[0].kind == (first or "poor_initialization")


def test_the_sign_of_the_loss_comes_before_the_weights():
    """Steps up the loss soon change the gain of all layers."""
    grown = Finding("exploding_gradient", "severe", (), 9, 80, {"decades_over_depth": -5.0}, "It grows.")
    climbed = Finding("exploding_gradient", "severe", (), 1, 80, {"uphill": 1.0}, "The loss rises.")
    found = with_remedies(Case(healthy()), [grown, climbed])
    assert [f.remedies[0].action for f in found] == ["check_sign", "check_sign"]
    assert with_remedies(Case(healthy()), [grown])[0].remedies[0].action == "he_init"


class TestNormThatComesBack:
    def thrown(self, peak, steps):
        """The norm grows, with the loss falling far below zero, until all units are saturated."""
        run = healthy(loss=1.0, activation="Tanh")
        norm, loss = run.total_norm.copy(), run.loss + 0.01 * np.random.default_rng(0).standard_normal(200)
        norm[20 : 20 + steps] *= np.geomspace(3, peak, steps)
        loss[20 : 20 + steps] -= np.geomspace(1, 1000, steps)
        loss[20 + steps :] = 20.0
        return changed(run, total_norm=norm, loss=loss, update_ratio=np.full_like(run.update_ratio, 0.02))

    def test_an_explosion_that_ends_in_saturation(self):
        finding = alarms(self.thrown(1e7, 100))[0]
        assert finding.kind == "exploding_gradient" and "stayed" not in finding.why

    @pytest.mark.parametrize(("peak", "steps"), [(300, 100), (1e7, 10)])
    def test_a_smaller_or_shorter_one(self, peak, steps):
        assert "exploding_gradient" not in kinds(self.thrown(peak, steps))

    def test_is_no_sum(self):
        """It rises like a sum, but a sum does not fall to a hundredth."""
        run = flat_loss(healthy(steps=80))
        norm = np.where(np.arange(80) < 30, np.sqrt(np.arange(1, 81)) ** 6, 8.0)
        said = diagnose(changed(run, total_norm=norm))
        assert not any("summed" in finding.evidence for finding in said)


class TestLossInTurn:
    def alternating(self, swing):
        run = healthy(steps=60)
        loss = np.linspace(0.8, 0.3, 60) + swing * (-1.0) ** np.arange(60)
        loss += 0.01 * np.random.default_rng(0).standard_normal(60)
        return changed(run, loss=loss, update_ratio=np.full_like(run.update_ratio, 0.02))

    def test_two_kinds_of_batches_although_the_loss_falls(self):
        (finding,) = alarms(self.alternating(0.08))
        assert finding.kind == "loss_oscillating" and "took turns" in finding.why

    def test_a_small_swing(self):
        assert kinds(self.alternating(0.02)) == []


class TestFirstSteps:
    def overwritten(self, factor, **fields):
        """Large first steps, after which the weights are larger, while the loss falls to the simplest fit."""
        run = healthy()
        ratio, norms = run.update_ratio.copy(), run.weight_norm.copy()
        ratio[:2] = 0.4
        norms[1:] *= factor
        loss = 3.0 + 1.1 * np.exp(-np.arange(200) / 5) + 0.02 * np.random.default_rng(0).standard_normal(200)
        return changed(run, update_ratio=ratio, weight_norm=norms, loss=loss, **fields)

    def test_that_overwrite_the_initial_weights(self):
        (finding,) = alarms(self.overwritten(2.5))
        assert finding.kind == "update_too_large" and finding.severity == "warning"

    def test_that_leave_their_scale(self):
        assert kinds(self.overwritten(1.3)) == []

    def test_of_weights_that_start_small_on_purpose(self):
        run = self.overwritten(2.5)
        assert kinds(changed(run, weight_norm=0.1 * run.weight_norm)) == []


def test_a_norm_that_is_thrown_far_within_ten_steps():
    """Its later size is that of most of the first ten steps, too."""
    noise = np.exp(0.3 * np.random.default_rng(0).standard_normal(197))
    norm = np.append(np.ones(3), 1e6 * noise)
    loss = np.append(np.full(3, 1.0), np.full(197, 500.0))
    found = diagnose(changed(healthy(), total_norm=norm, loss=loss))
    finding = next(f for f in found if f.kind == "exploding_gradient")
    assert finding.first_step == 4 and finding.evidence["growth"] == pytest.approx(1e6, rel=0.5)
