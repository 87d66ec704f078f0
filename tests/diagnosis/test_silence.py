"""Units and parameters without a gradient, and units at the ends of their range."""

from __future__ import annotations

import numpy as np
import pytest

from gradkern.diagnosis import diagnose
from tests.support.findings import alarms, kinds, only
from tests.support.runs import WIDTH, changed, flat_loss, healthy, slow


class TestDeadUnits:
    def test_a_layer_that_cuts_off_those_before_it(self):
        """The bias decides, because the matrix behind a dead layer has no gradient either."""
        run = healthy()
        rms = run.rms.copy()
        rms[50:, [0, 1, 2, 3, 4, 5, 6]] = 0  # layers 0, 2 and 4 are off, and with them the input of layer 6
        finding = only(flat_loss(changed(run, rms=rms)), "dead_units")
        assert finding.layers == ("4.weight", "4.bias") and finding.first_step == 51
        assert finding.evidence == {"dead_share": 1.0, "layers_cut_off": 2}
        assert finding.why.endswith("and 2 layers before it get no gradient.")

    @pytest.mark.parametrize(("zero", "found"), [(0, ["dead_units"]), (10, [])])
    def test_a_matrix_of_zeros_stops_what_is_before_it(self, zero, found):
        run = healthy()
        rms, norms = run.rms.copy(), run.weight_norm.copy()
        rms[:, [*range(7), zero]] = 0
        norms[:, zero] = 0
        assert alarms(flat_loss(changed(run, rms=rms, weight_norm=norms))) == found

    def test_a_bias_that_switches_units_off(self):
        run = healthy()
        rms, norms = run.rms.copy(), run.weight_norm.copy()
        rms[:, :5] = 0
        norms[:, 3] = 30 * np.sqrt(WIDTH)
        finding = only(flat_loss(changed(run, rms=rms, weight_norm=norms)), "dead_units")
        assert finding.layers == ("2.weight", "2.bias") and finding.remedies[0].action == "zero_bias"
        assert '"2.bias"' in finding.remedies[0].code

    def test_matrices_that_get_no_gradient_are_not_too_slow(self):
        """It is too early to be certain of dead units, but the optimizer misses no step."""
        run = healthy(steps=12)
        rms = run.rms.copy()
        rms[:, :-1] = 0
        still = changed(run, rms=rms, update_ratio=np.zeros_like(run.update_ratio))
        assert alarms(flat_loss(still)) == []

    def test_one_layer_that_is_cut_off(self):
        run = healthy()
        rms = run.rms.copy()
        rms[:, [0, 1, 2, 3, 4]] = 0
        finding = only(flat_loss(changed(run, rms=rms)), "dead_units")
        assert finding.why.endswith("and 1 layer before it gets no gradient.")

    def test_most_units_by_the_zeros_of_the_bias(self):
        zeros = healthy().zeros.copy()
        zeros[:, 5] = int(0.8 * WIDTH)
        finding = only(slow(changed(healthy(), zeros=zeros)), "dead_units")
        assert finding.layers == ("4.weight", "4.bias") and finding.severity == "warning"

    def test_sparse_batches_are_healthy(self):
        zeros = healthy().zeros.copy()
        zeros[:, 5] = np.random.default_rng(0).integers(int(0.39 * WIDTH), WIDTH, len(zeros))
        assert alarms(changed(healthy(), zeros=zeros)) == []

    def test_without_a_bias_by_the_elements_that_ever_had_a_gradient(self):
        ever = np.ones(6, dtype=np.float32)
        ever[3] = 0.1
        assert alarms(slow(changed(healthy(bias=False), ever_nonzero=ever))) == ["dead_units"]

    def test_smooth_activations_have_no_dead_units(self):
        zeros = healthy().zeros.copy()
        zeros[:, 5] = WIDTH
        assert alarms(changed(healthy(activation="Tanh"), zeros=zeros)) == []

    def test_units_that_leak_are_never_off(self):
        """The biases of a critic may have no gradient, because its terms cancel. The generator has ReLUs."""
        run = healthy(activation="LeakyReLU")
        zeros = np.full_like(run.zeros, -1)
        zeros[:, 5] = int(0.9 * WIDTH)
        facts = {**run.facts, "modules": {**run.facts["modules"], "g": "Sequential", "g.0": "ReLU"}}
        assert alarms(slow(changed(run, zeros=zeros, facts=facts))) == []
        assert alarms(slow(changed(healthy(), zeros=zeros))) == ["dead_units"]

    @pytest.mark.parametrize(("bias", "kind"), [(30.0, "saturation"), (0.01, "no_gradient")])
    def test_sigmoids_do_not_die(self, bias, kind):
        """Either the bias holds them at an end of their range, or the layers behind them have no slope."""
        run = healthy(activation="Sigmoid")
        rms, norms = run.rms.copy(), run.weight_norm.copy()
        rms[:, :4] = 0
        norms[:, 3] = bias * np.sqrt(WIDTH)
        finding = only(flat_loss(changed(run, rms=rms, weight_norm=norms)), kind)
        assert finding.layers == (run.names[:4] if kind == "no_gradient" else ("2.weight", "2.bias"))
        assert finding.remedies[0].action == ("zero_bias" if bias > 1 else "use_parameters")

    def test_a_loss_of_zero_is_solved(self):
        run = healthy()
        loss = run.loss.copy()
        loss[100:] = 0
        rms = run.rms.copy()
        rms[100:] = 0
        assert alarms(changed(run, rms=rms, loss=loss)) == []


class TestNoGradient:
    def test_inputs_that_are_zero(self):
        rms = healthy().rms.copy()
        rms[:, 0] = 0
        finding = only(changed(healthy(), rms=rms), "no_gradient")
        assert finding.layers == ("0.weight",) and "its input is zero" in finding.why
        rms[0, 0] = 1e-3  # a first state that is zero at most steps
        assert alarms(changed(healthy(), rms=rms)) == []

    def test_a_table_in_front_of_a_rounding(self):
        run = healthy()
        params = {**run.params, "0.weight": {**run.params["0.weight"], "kind": "Embedding"}}
        rms = run.rms.copy()
        rms[:, 0] = 0
        finding = only(changed(run, rms=rms, params=params), "no_gradient")
        assert finding.layers == ("0.weight",) and "without a slope" in finding.why

    def test_a_parameter_that_never_had_one(self):
        there, rms = healthy().has_grad.copy(), healthy().rms.copy()
        there[:, 4:6], rms[:, 4:6] = False, np.nan
        finding = only(changed(healthy(), has_grad=there, rms=rms), "no_gradient")
        assert finding.layers == ("4.weight", "4.bias") and finding.severity == "warning"

    def test_nothing_at_all(self):
        run = healthy()
        there = np.zeros_like(run.has_grad)
        none = changed(run, has_grad=there, rms=np.full_like(run.rms, np.nan))
        assert only(none, "no_gradient").severity == "severe"

    def test_frozen_parameters_are_meant_so(self):
        run = healthy()
        there, rms = run.has_grad.copy(), run.rms.copy()
        there[:, :6], rms[:, :6] = False, np.nan
        params = {n: {**p, "trainable": n not in run.names[:6]} for n, p in run.params.items()}
        assert kinds(changed(run, has_grad=there, rms=rms, params=params)) == []

    def test_experts_are_absent_from_some_steps(self):
        run = healthy()
        there, rms = run.has_grad.copy(), run.rms.copy()
        there[::2, 4:6] = there[:, 6:8] = False
        rms[~there] = np.nan
        names = tuple(n.replace("4.", "experts.0.").replace("6.", "experts.1.") for n in run.names)
        params = dict(zip(names, run.params.values()))
        run = changed(run, has_grad=there, rms=rms, names=names, params=params)
        assert alarms(run) == [] and kinds(run) == ["no_gradient"]


class TestSaturation:
    def large(self, activation, scale):
        run = flat_loss(healthy(activation=activation))
        return changed(run, weight_norm=scale * run.weight_norm)

    def test_large_weights_in_front_of_a_tanh(self):
        """The weights are the cause; units at the ends of their range are what they do."""
        first, second, *_ = diagnose(self.large("Tanh", 20))
        assert (first.kind, second.kind) == ("poor_initialization", "saturation")
        assert first.remedies[0].action == second.remedies[0].action == "xavier_init"
        assert "10.weight" not in second.layers

    @pytest.mark.parametrize(("activation", "scale"), [("Tanh", 2), ("Sigmoid", 5), ("ReLU", 20)])
    def test_others_are_not_saturated(self, activation, scale):
        assert "saturation" not in alarms(self.large(activation, scale))

    def test_large_inputs(self):
        run = flat_loss(healthy(activation="Tanh"))
        rms = run.rms.copy()
        rms[:, 0] *= 100
        rms[:, 1] *= 0.1  # saturated units pass little on
        assert only(changed(run, rms=rms), "saturation").remedies[0].action == "scale_inputs"

    @pytest.mark.parametrize("slope", [1.0, 0.6])
    def test_a_first_bias_whose_terms_cancel_over_the_batch(self, slope):
        """The input looks large, but the next layer gets as much signal as in a healthy run."""
        run = flat_loss(healthy(activation="Tanh"))
        rms = run.rms.copy()
        rms[:, 0] *= 1000
        rms[:, 1] *= slope
        assert "saturation" not in alarms(changed(run, rms=rms))

    def test_a_sigmoid_is_less_steep_and_not_saturated_for_it(self):
        run = flat_loss(healthy(activation="Sigmoid"))
        rms = run.rms * 10.0 ** (0.6 * np.repeat(np.arange(-5, 1), 2))  # a quarter for each layer
        rms[:, 0] *= 100
        found = alarms(changed(run, rms=rms))
        assert "saturation" not in found and "vanishing_gradient" in found
