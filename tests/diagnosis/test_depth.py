"""Gradients that vanish or explode, over depth and over time."""

from __future__ import annotations

import numpy as np
import pytest

from gradkern.diagnosis import diagnose
from tests.support.findings import alarms, only
from tests.support.runs import changed, flat_loss, healthy, sloped, slow


class TestVanishing:
    @pytest.mark.parametrize("activation", ["Sigmoid", "ReLU"])
    def test_weights(self, activation):
        finding = only(sloped(healthy(12, activation=activation), 6), "vanishing_gradient")
        assert finding.evidence["decades_over_depth"] == pytest.approx(6, abs=0.7)
        assert "0.weight" in finding.layers and "22.weight" not in finding.layers
        assert finding.remedies[0].action == ("relu" if activation == "Sigmoid" else "residual")

    def test_the_backward_signal_alone(self):
        """A gain that is too small: forward times backward stays level."""
        found = alarms(sloped(healthy(12), 0, biases=5))
        assert found[0] == "vanishing_gradient" and "poor_initialization" in found

    @pytest.mark.parametrize("decades", [-1.5, 0.9, 1.7])
    def test_a_mild_slope_is_healthy(self, decades):
        assert alarms(sloped(healthy(12), decades)) == []

    @pytest.mark.parametrize(("decades", "steps", "found"), [(3.2, 12, []), (3.2, 60, True), (5, 12, True)])
    def test_the_first_steps_say_so_only_far_beyond_the_limit(self, decades, steps, found):
        run = sloped(healthy(8, steps), decades)
        assert alarms(flat_loss(run)) == (found and ["vanishing_gradient"])

    def test_of_a_very_deep_model_every_layer_at_fault_is_named(self):
        """Not only the 48 of 120 that the profile samples. The text names four and counts the others."""
        finding = only(flat_loss(sloped(healthy(120), 8)), "vanishing_gradient")
        count = len(finding.layers)
        assert finding.layers == healthy(120).names[:count] and 160 < count < 190
        assert finding.evidence["layers_in_chain"] == 120
        assert finding.where == f"steps 1–200, in 0.weight, 0.bias, 2.weight, 2.bias and {count - 4} more"

    def test_one_small_layer_is_no_trend(self):
        rms = healthy(12).rms.copy()
        rms[:, 0:2] *= 1e-5
        assert "vanishing_gradient" not in alarms(changed(healthy(12), rms=rms))

    def test_layers_in_parallel_do_not_count(self, graph):
        """Without the graph they look like layers in a row, and the text says what was assumed."""
        run = sloped(healthy(12), 6)
        walked = {"order": list(run.names), "serial": ["0.weight", "22.weight"], "operations": ["relu"]}
        run = changed(run, facts={**run.facts, "modules": {}, "graph": walked})
        assert alarms(run) == ([] if graph else ["vanishing_gradient"])
        assert graph or "in the order in which the model lists them" in diagnose(run)[0].why

    def test_the_order_of_execution_counts(self, graph):
        """Layers that are registered from the output to the input: the gradient vanishes as before. Without
        the graph they are taken to run in the order in which they are registered."""
        run = sloped(healthy(12, activation="Sigmoid"), -6)
        walked = {"order": list(run.names[::-1]), "operations": ["sigmoid"]}
        run = changed(run, facts={"modules": {"": "Net", "1": "Sigmoid"}, "graph": walked})
        finding = only(run, "vanishing_gradient" if graph else "exploding_gradient")
        assert graph != ("in the order in which the model lists them" in finding.why)

    def test_biases_in_front_of_a_normalization_are_left_out(self):
        assert alarms(sloped(healthy(12), 0, biases=0)) == []
        rms = healthy(12).rms.astype(float)
        rms[:, 1::2] *= 1e-7 * 10.0 ** np.linspace(0, 5, 12)
        assert alarms(changed(healthy(12), rms=rms.astype(np.float32))) == []


class TestExploding:
    def test_over_depth(self):
        finding = only(flat_loss(sloped(healthy(12), -6)), "exploding_gradient")
        assert finding.severity == "severe" and "0.weight" in finding.layers
        assert finding.remedies[0].action == "he_init"

    def test_a_gain_that_is_too_large(self):
        found = alarms(flat_loss(sloped(healthy(12), 0, biases=-5)))
        assert found[:2] == ["poor_initialization", "exploding_gradient"]

    @pytest.mark.parametrize(("size", "found"), [(3.0, []), (180.0, ["exploding_gradient"])])
    def test_large_inputs(self, size, found):
        """rms(gW) / rms(gb) of the first layer estimates them; Adam's steps hide them in the norm."""
        rms = healthy().rms.copy()
        rms[:, 0] *= 2 * size
        run = slow(changed(healthy(), rms=rms))
        assert alarms(run) == found
        assert not found or diagnose(run)[0].remedies[0].action == "scale_inputs"
        assert alarms(changed(healthy(), rms=rms)) == []  # it learns nevertheless
        tanh = slow(changed(healthy(activation="Tanh"), rms=rms))  # gradients of biases may cancel
        assert "exploding_gradient" not in alarms(tanh)

    def test_large_weights_explain_a_large_loss(self):
        run = flat_loss(sloped(healthy(12), 0, biases=-5), value=1e4)
        assert only(run, "poor_initialization").remedies[0].action == "he_init"

    def test_normalization_without_residuals_is_healthy(self):
        run = sloped(healthy(30, activation="BatchNorm1d"), -4)
        assert alarms(run) == []

    def grown(self, end, loss_end):
        run = healthy()
        growth = np.geomspace(1, end, 200)
        loss = np.concatenate([np.linspace(2.3, 1.8, 60), np.geomspace(1.8, loss_end, 140)])
        norms = run.weight_norm[:1] * np.geomspace(1, 3, len(run.update_steps))[:, None]
        return changed(run, total_norm=run.total_norm * growth, loss=loss, weight_norm=norms)

    def test_over_time(self):
        finding = only(self.grown(1e4, 50.0), "exploding_gradient")
        assert finding.remedies[0].action == "clip"
        assert finding.evidence["growth"] > 100

    def test_growth_while_the_loss_falls_is_healthy(self):
        assert "exploding_gradient" not in alarms(self.grown(1e4, 0.5))

    def test_gradients_that_add_up(self):
        norm = np.arange(1, 201) * (1 + 0.002 * np.random.default_rng(0).standard_normal(200))
        run = changed(flat_loss(healthy()), total_norm=norm)
        assert only(run, "exploding_gradient").remedies[0].action == "zero_grad"

    def test_behind_a_clip_the_start_and_the_smooth_course_are_enough(self):
        norm = 1 + 9 * (1 - np.exp(-np.arange(200) / 15))
        run = changed(slow(healthy()), total_norm=norm)
        assert only(run, "exploding_gradient").remedies[0].action == "zero_grad"
        noisy = norm * np.exp(0.1 * np.random.default_rng(0).standard_normal(200))
        assert alarms(changed(slow(healthy()), total_norm=noisy)) == []

    @pytest.mark.parametrize(("dips", "found"), [([3], True), ([3, 5], False)])
    def test_one_dip_at_the_start(self, dips, found):
        norm = 1 + 9 * (1 - np.exp(-np.arange(200) / 15))
        for at in dips:
            norm[at] = 0.95 * norm[at - 1]
        assert bool(alarms(changed(slow(healthy()), total_norm=norm))) == found

    def test_a_loss_that_is_climbed_is_no_sum(self):
        run = self.grown(1e4, 50.0)
        norm, loss = np.linspace(1, 3, 20), np.geomspace(2.3, 50, 200)
        run = changed(run, total_norm=np.concatenate([norm, np.geomspace(3, 1e4, 180)]), loss=loss)
        actions = [remedy.action for remedy in only(run, "exploding_gradient").remedies]
        assert actions[0] == "check_sign" and "zero_grad" not in actions

    def test_a_plateau_that_is_left_smoothly_is_healthy(self):
        """Full batches have smooth norms too, but those of the first steps are alike."""
        run = changed(healthy(), total_norm=np.geomspace(1, 8, 200))
        assert alarms(run) == []

    @pytest.mark.parametrize("steps", [20, 50])
    def test_while_the_loss_falls_growth_has_another_explanation(self, steps):
        """The first steps of large batches: the norm grows as smoothly as a sum's, for as long as the loss
        falls. Where it stands, or the norm grows beyond what a plateau's end does, nothing else is left."""
        falling, norm = np.linspace(2.3, 0.8, steps), np.linspace(1, 9, steps)
        assert alarms(changed(healthy(steps=steps), loss=falling, total_norm=norm)) == []
        for run in (
            changed(flat_loss(healthy(steps=steps)), total_norm=norm),
            changed(healthy(steps=steps), loss=falling, total_norm=np.arange(1, steps + 1) ** 1.5),
        ):
            assert only(run, "exploding_gradient").remedies[0].action == "zero_grad"

    def test_a_start_that_throws_the_weights_away(self):
        run = healthy()
        norm, ratio = run.total_norm.copy(), run.update_ratio.copy()
        norm[0], ratio[0] = 1000 * norm[0], 0.5
        loss = run.loss.copy()
        loss[1:3] += 1.0
        assert "exploding_gradient" in alarms(changed(run, total_norm=norm, update_ratio=ratio, loss=loss))
