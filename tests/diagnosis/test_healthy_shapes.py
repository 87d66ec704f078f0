"""Healthy runs that rules once reported, each with the fault that it resembles."""

from __future__ import annotations

import numpy as np
import pytest

from gradkern.diagnosis import diagnose
from tests.support.runs import WIDTH, changed, flat_loss, healthy, sloped, slow


def alarms(evidence):
    return [finding.kind for finding in diagnose(evidence) if finding.is_alarm]


def silenced(run, *columns):
    rms = run.rms.copy()
    rms[:, columns] = 0
    return changed(run, rms=rms)


class TestSilentMatrices:
    def test_a_bias_with_a_gradient_says_that_the_units_are_alive(self):
        """Only the input of that matrix is zero, and nothing before it is off."""
        assert alarms(silenced(healthy(), 6)) == []
        assert alarms(slow(silenced(healthy(), 6, 7))) == ["dead_units"]

    def test_a_recurrent_layer_of_one_step_has_no_state(self):
        run = healthy(layers=2)
        names = ("core.weight_ih_l0", "core.bias_ih_l0", "core.weight_hh_l0", "core.bias_hh_l0")
        params = dict(zip(names, ({**p, "kind": "GRU"} for p in run.params.values())))
        assert alarms(silenced(changed(run, names=names, params=params, facts={}), 2, 3)) == []

    @pytest.mark.parametrize(("parts", "severity"), [(WIDTH, "info"), (1, "warning")])
    def test_a_small_side_branch_does_not_stop_a_model_that_learns(self, parts, severity):
        """A gate of few units is off; the layers before it get their gradient through another branch."""
        run = silenced(healthy(), 4, 5)
        numel = run.numel.copy()
        numel[4:6] //= parts
        assert [f.severity for f in diagnose(slow(changed(run, numel=numel)))] == [severity]


class TestZerosAtAFewLooks:
    def at_looks(self, share, ever):
        """Zeros counted at steps 1, 2, 4, …, 128, as a monitor does by default."""
        run = healthy()
        zeros = np.full_like(run.zeros, -1)
        zeros[np.array([1, 2, 4, 8, 16, 32, 64, 100, 128]) - 1, 5] = int(share * WIDTH)
        known = run.ever_nonzero.copy()
        known[5] = ever
        return slow(changed(run, zeros=zeros, ever_nonzero=known))

    def test_nearly_all_units(self):
        assert alarms(self.at_looks(0.94, 1.0)) == ["dead_units"]

    def test_most_units_if_they_never_had_a_gradient(self):
        assert alarms(self.at_looks(0.8, 0.2)) == ["dead_units"]
        assert alarms(self.at_looks(0.8, 1.0)) == []


class TestUnmoved:
    def still(self, groups):
        run = healthy()
        ratio, norms = run.update_ratio.copy(), run.weight_norm.copy()
        ratio[:, 11], norms[:, 11] = 0, norms[0, 11]
        return changed(run, update_ratio=ratio, weight_norm=norms, facts={**run.facts, "optimizers": groups})

    def test_a_parameter_that_an_optimizer_has_is_not_left_out(self):
        """Its gradient is zero at the step, like that of the last bias of a Wasserstein critic."""
        names = list(healthy().names)
        assert alarms(self.still([{"name": "", "lr": 1e-3, "parameters": names}])) == []
        assert alarms(self.still([{"name": "", "lr": 1e-3, "parameters": names[:11]}])) == [
            "update_too_small"
        ]

    def test_a_group_that_stands_still_is(self):
        names = list(healthy().names)
        groups = [
            {"name": "", "lr": 1e-3, "parameters": names[:11]},
            {"name": "", "lr": 0.0, "parameters": names[11:]},
        ]
        assert alarms(self.still(groups)) == ["update_too_small"]

    def test_an_optimizer_that_never_steps_is(self):
        names = list(healthy().names)
        groups = [
            {"name": "0", "lr": 1e-3, "parameters": names[:11]},
            {"name": "1", "lr": 1e-3, "parameters": names[11:]},
        ]
        assert alarms(self.still(groups)) == ["update_too_small"]


class TestFirstLoss:
    def first(self, value, bias_norm):
        run = healthy()
        graph = {"operations": ["relu", "nll_loss"], "loss": "nll_loss"}
        rms = run.rms.copy()
        rms[:, 11] = bias_norm / np.sqrt(WIDTH)
        loss = np.concatenate([[value] * 3, run.loss[3:] + 3.0])
        return changed(run, loss=loss, rms=rms, facts={**run.facts, "graph": graph})

    def test_a_sum_over_the_batch_is_no_large_loss(self, graph):
        """The gradient of the outputs' bias is longer than that of a mean can be."""
        assert alarms(self.first(400.0, 1.2)) == (["poor_initialization"] if graph else [])
        assert alarms(self.first(400.0, 6.0)) == []


class TestRunningAway:
    def test_an_adaptive_optimizer_that_walks_uphill(self):
        """Its steps stay small, but the loss becomes a thousand times what it was."""
        growth = np.geomspace(1, 1e3, 200)
        run = changed(healthy(), total_norm=healthy().total_norm * growth, loss=2.3 * growth)
        finding = diagnose(run)[0]
        assert finding.kind == "exploding_gradient" and finding.remedies[0].action == "check_sign"

    def test_a_norm_that_falls_as_a_classifier_converges(self):
        run = healthy()
        fall = np.geomspace(1, 1e-3, 200)
        loss = 2.3 * fall
        loss[2] *= 3  # a jump in the first steps
        graph = {"operations": ["relu", "nll_loss"], "loss": "nll_loss"}
        fell = changed(run, total_norm=run.total_norm * fall, loss=loss, facts={**run.facts, "graph": graph})
        assert alarms(fell) == []
        assert alarms(changed(fell, facts=run.facts)) == []  # a loss that was recorded as a number


def test_noise_that_happens_to_alternate_is_no_oscillation():
    """At 67 steps the correlation of neighbours of noise is below -0.4 in one run of fifty."""
    found = 0
    for seed in range(60):
        loss = 20 + 2 * np.random.default_rng(seed).standard_normal(100)
        run = healthy(steps=100)
        found += "loss_oscillating" in alarms(
            changed(run, loss=loss, update_ratio=np.full_like(run.update_ratio, 0.05))
        )
    assert found == 0


def test_a_converged_run_that_still_falls_slowly_is_healthy():
    run = healthy()
    small = np.full_like(run.update_ratio, 1e-6)
    slow = changed(run, loss=np.linspace(1.0, 0.99, 200) * 3e-5, update_ratio=small)
    assert alarms(slow) == []
    assert alarms(changed(slow, loss=np.linspace(1.0, 0.999, 200) * 3e-5)) == ["update_too_small"]


def test_a_pruned_matrix_has_its_bias():
    """Masked elements never have a gradient; the bias tells that the units are alive."""
    run = healthy()
    names = tuple(n + "_orig" if n == "4.weight" else n for n in run.names)
    params = dict(zip(names, run.params.values()))
    ever = run.ever_nonzero.copy()
    ever[4] = 0.2
    assert alarms(changed(run, names=names, params=params, ever_nonzero=ever)) == []


@pytest.mark.parametrize("name", ["0.parametrizations.weight.original1", "0.weight_orig", "0.weight_v"])
def test_a_parametrized_matrix_has_its_bias(name):
    from gradkern.diagnosis.model import Model

    run = healthy()
    names = (name, *run.names[1:])
    params = dict(zip(names, run.params.values()))
    assert Model(changed(run, names=names, params=params))._bias(name) == 1


class TestOrder:
    def test_steps_that_were_too_large_explain_a_gain_that_came_later(self):
        run = flat_loss(healthy(12))
        steep = sloped(run, 0, biases=-5).rms
        rms = run.rms.copy()
        rms[60:] = steep[60:]
        ratio = run.update_ratio.copy()
        ratio[:3] = 2.0
        found = alarms(changed(run, rms=rms, update_ratio=ratio))
        assert found[0] == "update_too_large" and "exploding_gradient" in found

    def test_a_parameter_that_is_left_out_comes_before_a_branch_that_is_off(self):
        run = silenced(healthy(), 4, 5)
        ratio, norms = run.update_ratio.copy(), run.weight_norm.copy()
        ratio[:, 10:12], norms[:, 10:12] = 0, norms[0, 10:12]
        found = alarms(slow(changed(run, update_ratio=ratio, weight_norm=norms)))
        assert found == ["update_too_small", "dead_units"]

    def test_steps_that_are_the_decay_itself(self):
        """Steps as large as a decay of 20 % do not mean that the learning rate is too large."""
        run = flat_loss(healthy())
        norms = run.weight_norm[:1] * 0.8 ** run.update_steps[:, None].clip(max=30)
        found = alarms(changed(run, weight_norm=norms, update_ratio=np.full_like(norms, 0.21)))
        assert found[0] == "weight_collapse"


class TestPlateaus:
    def left_late(self, until):
        """The gradient vanishes up to a step, and then does not."""
        run = healthy(12, activation="Sigmoid")
        rms = run.rms.copy()
        rms[:until] = sloped(run, 5).rms[:until]
        loss = np.where(np.arange(200) < until, 0.7, 0.7 * 0.98 ** (np.arange(200) - until))
        return changed(run, rms=rms, loss=loss)

    def test_half_of_the_run_lost_on_a_plateau(self):
        finding = diagnose(self.left_late(130))[0]
        assert finding.kind == "vanishing_gradient" and finding.severity == "warning"

    def test_a_short_one_is_healthy(self):
        assert alarms(self.left_late(40)) == []


def test_a_classifier_that_falls_to_guessing_has_learned_nothing():
    """Its outputs started wrong, so that a loss that falls to ln(classes) is no progress."""
    run = healthy()
    graph = {"operations": ["relu", "nll_loss"], "loss": "nll_loss"}
    guessing = np.log(WIDTH)
    loss = guessing * np.where(np.arange(200) < 10, 1.2, 1.0)
    found = diagnose(changed(run, loss=loss, facts={**run.facts, "graph": graph}))
    assert [(f.kind, f.severity) for f in found] == [("loss_not_decreasing", "info")]
    assert diagnose(changed(run, loss=0.9 * loss, facts={**run.facts, "graph": graph})) == []


class TestConvexProblems:
    """Linear regression on full batches: small weights reach their size in a few steps, and the loss
    converges."""

    def descent(self, contraction):
        run = healthy()
        fall = np.maximum(contraction ** np.arange(200), 1e-4)
        ratio = np.maximum(0.8 * contraction**run.update_steps, 1e-4)
        moved = np.repeat(ratio[:, None], run.update_ratio.shape[1], axis=1).astype(np.float32)
        loss = 0.077 + 8.6 * fall**2
        return changed(run, total_norm=5.6 * fall, loss=loss, update_ratio=moved)

    @pytest.mark.parametrize("contraction", [0.1, 0.5, 0.8, 0.95])
    def test_the_gradient_falls_with_the_loss(self, contraction):
        assert alarms(self.descent(contraction)) == []

    def test_a_gradient_that_is_another_at_once_was_thrown_away(self):
        run = self.descent(0.95)
        norm = np.where(np.arange(200) < 1, 5.6, 5.6e-3)
        loss = np.where(np.arange(200) < 1, 8.6, 2.3 + 0.01 * np.cos(np.arange(200)))
        assert "exploding_gradient" in alarms(changed(run, total_norm=norm, loss=loss))

    def test_steps_as_large_with_a_loss_that_jumps(self):
        run = self.descent(0.95)
        loss = run.loss + 8.6
        loss[1:3] *= 2
        assert "update_too_large" in alarms(changed(run, loss=loss))
