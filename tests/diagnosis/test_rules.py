"""Rules together: healthy runs, the order of findings, remedies, runs without facts; losses and spikes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gradkern.diagnosis import KINDS, diagnose
from tests.support.findings import alarms, kinds, only
from tests.support.runs import changed, flat_loss, healthy, sloped


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["ReLU", "Sigmoid", "Tanh", "GELU"])
def test_healthy_runs_have_no_finding(seed, bias, activation):
    assert kinds(healthy(bias=bias, activation=activation, seed=seed)) == []


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 12])
def test_short_runs_have_no_alarm(steps):
    assert alarms(healthy(steps=steps)) == []


class TestSpikes:
    def spiked(self, factor, steps=(120,), jump=0.0):
        run = healthy()
        norm, loss = run.total_norm.copy(), run.loss.copy()
        for step in steps:
            norm[step] *= factor
            loss[step : step + 2] += jump
        return changed(run, total_norm=norm, loss=loss)

    def test_a_hundredfold_norm(self):
        finding = only(self.spiked(300), "gradient_spike")
        assert finding.first_step == finding.last_step == 121
        assert finding.remedies[0].action == "clip" and finding.why.endswith("has 1 such step.")

    def test_a_smaller_one_needs_the_loss(self):
        assert alarms(self.spiked(30)) == []
        assert alarms(self.spiked(30, jump=3.0)) == ["gradient_spike"]

    def test_spikes_and_nan_stay_out_of_the_baseline(self):
        run = self.spiked(300, steps=(100, 104, 110))
        norm = run.total_norm.copy()
        norm[101:103] = np.nan
        found = [f for f in diagnose(dataclasses.replace(run, total_norm=norm)) if f.kind == "gradient_spike"]
        assert found[0].evidence["spikes"] == 3

    def test_many_are_noise(self):
        assert alarms(self.spiked(300, steps=range(20, 200, 9))) == []

    def test_a_clipped_one_did_no_harm(self):
        run = self.spiked(300)
        coef = np.ones(200)
        coef[120] = 0.01
        assert [f.severity for f in diagnose(changed(run, clip_coef=coef))] == ["info"]


class TestLoss:
    @pytest.mark.parametrize(("part", "found"), [(0.05, ["loss_not_decreasing"]), (0.15, [])])
    def test_a_loss_that_hardly_falls(self, part, found):
        said = diagnose(changed(healthy(), loss=2.3 - part * 2.3 * np.linspace(0, 1, 200)))
        assert [f.kind for f in said] == found and all("hardly fell" in f.why for f in said)

    def test_not_falling_is_information(self):
        found = diagnose(flat_loss(healthy()))
        assert [(f.kind, f.severity) for f in found] == [("loss_not_decreasing", "info")]

    def test_jumping_to_and_fro_with_large_steps(self):
        run = healthy()
        loss = 2.3 + np.where(np.arange(200) % 2, 1.0, -1.0) * np.minimum(np.arange(200) / 10, 1)
        ratio = np.full_like(run.update_ratio, 0.05)
        assert alarms(changed(run, loss=loss, update_ratio=ratio)) == ["loss_oscillating"]
        assert alarms(changed(run, loss=loss)) == []  # two batches in turn

    def test_parts_that_are_trained_in_turn_have_a_loss_each(self):
        run = healthy()
        odd = np.arange(200) % 2 == 1
        has = run.has_grad.copy()
        has[odd, :6], has[~odd, 6:] = False, False
        loss = run.loss + np.where(odd, 3.0, 0.0)
        ratio = np.full_like(run.update_ratio, 0.05)
        assert alarms(changed(run, has_grad=has, loss=loss, update_ratio=ratio)) == []

    def test_noise_is_no_oscillation(self):
        ratio = np.full_like(healthy().update_ratio, 0.05)
        assert alarms(changed(flat_loss(healthy()), update_ratio=ratio)) == []


def test_causes_come_before_consequences():
    """Steps that are too large kill units later on."""
    run = flat_loss(healthy())
    rms, ratio = run.rms.copy(), run.update_ratio.copy()
    rms[60:, :7] = 0
    ratio[:3] = 2.0
    found = alarms(changed(run, rms=rms, update_ratio=ratio))
    assert found == ["update_too_large", "dead_units"]


def test_weights_that_one_spike_threw_are_its_consequence():
    run = flat_loss(healthy())
    norm, weights = run.total_norm.copy(), run.weight_norm.copy()
    norm[47] *= 3000
    weights[run.update_steps > 48] *= 300
    found = alarms(changed(run, total_norm=norm, weight_norm=weights))
    assert found[:2] == ["gradient_spike", "weight_growth"]


def test_alarms_come_before_information():
    found = diagnose(flat_loss(changed(healthy(), update_ratio=np.full_like(healthy().update_ratio, 0.9))))
    assert [f.is_alarm for f in found] == sorted((f.is_alarm for f in found), reverse=True)


def test_every_alarm_has_a_remedy_and_a_reason():
    for run in (sloped(healthy(12), 6), flat_loss(sloped(healthy(12), -6)), TestSpikes().spiked(300)):
        for finding in diagnose(run):
            assert finding.kind in KINDS and finding.why.endswith(".")
            assert not finding.is_alarm or finding.remedies
            for remedy in finding.remedies:
                compile(remedy.code, remedy.action, "exec")


@pytest.mark.parametrize("drop", ["facts", "params", "looks", "loss"])
def test_rules_work_without_facts(drop):
    """A vanishing run is found whatever else is not known, and nothing raises."""
    run = sloped(healthy(12), 6)
    nothing = {
        "facts": {"facts": {}},
        "params": {"params": {}, "facts": {}},
        "looks": {
            "update_steps": np.zeros(0, dtype=np.int64),
            "weight_norm": np.zeros((0, 24), dtype=np.float32),
            "update_ratio": np.zeros((0, 24), dtype=np.float32),
        },
        "loss": {"loss": np.full(200, np.nan), "has_loss": np.zeros(200, dtype=bool)},
    }[drop]
    assert alarms(changed(run, **nothing))[0] == "vanishing_gradient"
    assert alarms(changed(healthy(12), **nothing)) == []
