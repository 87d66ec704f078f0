"""Every rule on synthetic evidence: it finds the faulty run and not its healthy twin."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gradkern.diagnosis import KINDS, diagnose
from tests.support.runs import WIDTH, changed, flat_loss, healthy, sloped, slow


def kinds(evidence):
    return [finding.kind for finding in diagnose(evidence)]


def alarms(evidence):
    return [finding.kind for finding in diagnose(evidence) if finding.is_alarm]


def only(evidence, kind):
    """The headline, which has to be of a kind."""
    found = diagnose(evidence)
    assert found and found[0].kind == kind, [f.kind for f in found]
    return found[0]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["ReLU", "Sigmoid", "Tanh", "GELU"])
def test_healthy_runs_have_no_finding(seed, bias, activation):
    assert kinds(healthy(bias=bias, activation=activation, seed=seed)) == []


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 12])
def test_short_runs_have_no_alarm(steps):
    assert alarms(healthy(steps=steps)) == []


class TestNonfinite:
    def poisoned(self, columns, first=100, last=None, **fields):
        run = healthy()
        bad, rms = run.nonfinite.copy(), run.rms.copy()
        bad[first:last, columns] = 1
        rms[first:last, columns] = np.nan
        return changed(run, nonfinite=bad, rms=rms, **fields)

    def test_names_the_layer_nearest_the_output(self):
        finding = only(self.poisoned([0, 1, 2, 3, 4]), "nonfinite_gradient")
        assert finding.layers == ("4.weight",) and finding.first_step == 101
        assert finding.severity == "severe"

    def test_everywhere_at_once_is_the_whole_model(self):
        loss = healthy().loss
        loss[100:] = np.nan
        finding = only(self.poisoned(range(12), loss=loss), "nonfinite_gradient")
        assert finding.layers == () and "the loss" in finding.why
        assert [r.action for r in finding.remedies[:2]] == ["skip_nonfinite", "check_data"]

    def test_a_step_that_passed_is_no_more_than_a_warning(self):
        assert only(self.poisoned([4], 100, 101), "nonfinite_gradient").severity == "warning"

    def test_overflow_is_told_from_a_nan(self):
        run = self.poisoned(range(12))
        norm = np.where(np.isnan(run.total_norm), np.nan, np.geomspace(1, 1e12, 200))
        finding = only(dataclasses.replace(run, total_norm=norm), "nonfinite_gradient")
        assert "overflowed" in finding.why and finding.remedies[0].action == "lower_lr"

    def test_a_loss_scale_that_is_never_lowered(self):
        run = self.poisoned(range(12), 0, loss_scale=np.full(200, 2.0**40))
        assert only(run, "nonfinite_gradient").remedies[0].action == "loss_scaling"

    def test_a_loss_scaler_looks_for_its_scale(self):
        run = self.poisoned(range(12), 0, 5, loss_scale=np.full(200, 65536.0))
        assert only(run, "nonfinite_gradient").severity == "info"


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


class TestInitialization:
    @pytest.mark.parametrize(("size", "found"), [(1.0, []), (60.0, ["poor_initialization"])])
    def test_a_lookup_table(self, size, found):
        run = healthy()
        params = {**run.params, "0.weight": {**run.params["0.weight"], "kind": "Embedding"}}
        norms = run.weight_norm.copy()
        norms[:, 0] = size * WIDTH
        assert alarms(changed(run, params=params, weight_norm=norms)) == found

    def test_constant_weights(self):
        crest = healthy().max_abs.copy()
        crest[:, 2:10:2] = healthy().rms[:, 2:10:2]
        finding = only(changed(healthy(), max_abs=crest), "poor_initialization")
        assert finding.layers == (
            "2.weight",
            "2.bias",
            "4.weight",
            "4.bias",
            "6.weight",
            "6.bias",
            "8.weight",
            "8.bias",
        )
        assert finding.remedies[0].action == "he_init"

    def test_zero_weights(self):
        run = healthy()
        rms, norms = run.rms.copy(), run.weight_norm.copy()
        rms[:, 0::2] = norms[:, 0::2] = 0
        assert alarms(flat_loss(changed(run, rms=rms, weight_norm=norms)))[0] == "poor_initialization"

    @pytest.mark.parametrize(("first", "found"), [(2.4, []), (9.0, []), (400.0, ["poor_initialization"])])
    def test_a_first_loss_far_above_guessing(self, first, found, graph):
        """It is no alarm once the outputs are far better than guessing. A loss of unknown kind may be that of
        a regression."""
        found = found if graph else []
        run = healthy()
        graph = {"operations": ["relu", "nll_loss"], "loss": "nll_loss"}
        run = changed(run, facts={**run.facts, "graph": graph})
        loss = np.concatenate([[first] * 3, run.loss[3:]])
        assert alarms(changed(run, loss=loss)) == []
        assert alarms(changed(run, loss=np.append(loss[:3], loss[3:] + 3.0))) == found

    def test_a_gain_that_is_too_large(self):
        run = healthy(bias=False)
        finding = only(changed(run, weight_norm=3.5 * run.weight_norm), "poor_initialization")
        assert finding.evidence["gain"] == pytest.approx(3.5) and finding.remedies[0].action == "he_init"

    def test_a_gain_of_a_thousand_layers_is_no_overflow(self):
        run = healthy(layers=1200, steps=20, bias=False)
        assert (
            only(changed(run, weight_norm=8 * run.weight_norm), "poor_initialization").evidence["layers"]
            == 1200
        )

    def test_behind_a_normalization_the_gain_does_not_matter(self):
        run = healthy(activation="LayerNorm")
        assert alarms(changed(run, weight_norm=3.5 * run.weight_norm)) == []

    @pytest.mark.parametrize(("steps", "found"), [(1, False), (200, True)])
    def test_a_signal_that_seems_to_grow_at_one_step_does_not(self, steps, found):
        """If the terms of a bias's gradient cancel over one batch, the input looks far too large."""
        run = healthy(3)
        rms = run.rms.copy()
        rms[:steps, 5] /= 3000
        kind = "poor_initialization"
        assert (kind in kinds(changed(run, rms=rms))) == found

    def test_a_recurrent_matrix(self):
        run = healthy(layers=2)
        names = ("core.weight_ih_l0", "core.bias_ih_l0", "core.weight_hh_l0", "core.bias_hh_l0")
        params = dict(zip(names, ({**p, "kind": "RNN"} for p in run.params.values())))
        run = changed(run, names=names, params=params, facts={})
        assert alarms(run) == []
        finding = only(changed(run, weight_norm=3 * run.weight_norm), "poor_initialization")
        assert finding.layers == ("core.weight_hh_l0",)


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


class TestUpdates:
    def test_too_large(self):
        ratio = np.full_like(healthy().update_ratio, 0.9)
        finding = only(flat_loss(changed(healthy(), update_ratio=ratio)), "update_too_large")
        assert finding.severity == "severe" and finding.remedies[0].action == "lower_lr"
        assert 'group["lr"] *= 0.03' in finding.remedies[0].code

    def test_large_without_harm_is_healthy(self):
        ratio = np.full_like(healthy().update_ratio, 0.3)
        assert alarms(changed(healthy(), update_ratio=ratio)) == []

    def test_a_loss_that_is_set_back(self):
        """One step of a quarter of the weights; the loss rises, and comes back later or at once."""
        run = healthy()
        ratio = run.update_ratio.copy()
        ratio[0] = 0.28
        loss = np.concatenate([run.loss[:1], [130.0], np.full(100, 2.6), np.linspace(2.5, 1.5, 98)])
        assert only(changed(run, update_ratio=ratio, loss=loss), "update_too_large")
        loss[2:] = run.loss[2:]
        loss[1] = 2.6
        assert alarms(changed(run, update_ratio=ratio, loss=loss)) == []

    @pytest.mark.parametrize(("second", "severity"), [(0.04, "info"), (0.19, "warning")])
    def test_only_the_first_step_is_too_large_and_the_loss_recovers(self, second, severity):
        """An optimizer that divides by a variance of zero; the rate is as it should be."""
        run = healthy()
        ratio = run.update_ratio.copy()
        ratio[0], ratio[1] = 1.2, second
        loss = np.concatenate([run.loss[:1], np.geomspace(37, 1.5, 60), np.linspace(1.5, 1.2, 139)])
        finding = only(changed(run, update_ratio=ratio, loss=loss), "update_too_large")
        assert finding.severity == severity

    @pytest.mark.parametrize(("steps", "found"), [(20, []), (64, ["update_too_large"])])
    def test_a_loss_that_has_not_fallen_yet_is_no_harm_of_the_first_step(self, steps, found):
        run = flat_loss(healthy(steps=steps))
        ratio = run.update_ratio.copy()
        ratio[0] = 0.24
        assert alarms(changed(run, update_ratio=ratio)) == found

    def test_too_small(self):
        ratio = np.full_like(healthy().update_ratio, 1e-8)
        finding = only(flat_loss(changed(healthy(), update_ratio=ratio)), "update_too_small")
        assert finding.layers == () and finding.remedies[0].action == "raise_lr"
        assert alarms(changed(healthy(), update_ratio=ratio)) == []  # the loss falls

    def test_steps_that_were_not_recorded_move_the_weights_too(self):
        run = flat_loss(changed(healthy(), update_ratio=np.full_like(healthy().update_ratio, 4e-6)))
        assert alarms(run) == ["update_too_small"]
        assert alarms(changed(run, steps=100 * run.steps)) == []

    def test_a_fall_that_no_such_step_explains_is_noise(self):
        run = changed(healthy(), update_ratio=np.full_like(healthy().update_ratio, 1e-9))
        loss = 2.3 + 0.02 * np.random.default_rng(1).standard_normal(200)
        loss[:3] += 0.1
        assert alarms(changed(run, loss=loss)) == ["update_too_small"]

    def test_an_optimizer_that_never_steps(self):
        nothing = np.zeros((0, 12), dtype=np.float32)
        looks = {"update_steps": np.zeros(0, dtype=np.int64), "weight_norm": nothing, "update_ratio": nothing}
        run = flat_loss(changed(healthy(), **looks))
        assert alarms(run) == []
        finding = only(changed(run, watches_steps=True), "update_too_small")
        assert finding.remedies[0].action == "call_step"

    def test_a_learning_rate_of_zero(self):
        still = np.zeros_like(healthy().update_ratio)
        norms = np.repeat(healthy().weight_norm[:1], len(still), axis=0)
        run = flat_loss(changed(healthy(), update_ratio=still, weight_norm=norms, lr=np.zeros(200)))
        finding = only(run, "update_too_small")
        assert finding.remedies[0].action == "raise_lr" and "1e-3" in finding.remedies[0].code
        assert "rate is 0" in finding.why

    def test_weights_of_16_bits_need_larger_steps(self):
        run = flat_loss(changed(healthy(), update_ratio=np.full_like(healthy().update_ratio, 2e-5)))
        half = {n: {**p, "dtype": "bfloat16"} for n, p in run.params.items()}
        assert alarms(run) == []
        assert only(changed(run, params=half), "update_too_small").remedies[0].action == "float32_weights"

    def test_the_end_of_a_schedule_is_healthy(self):
        ratio = np.full_like(healthy().update_ratio, 1e-8)
        run = flat_loss(changed(healthy(), update_ratio=ratio, lr=np.linspace(1e-3, 0, 200)))
        assert alarms(run) == []

    def test_parameters_that_no_optimizer_has(self):
        run = healthy()
        ratio, norms = run.update_ratio.copy(), run.weight_norm.copy()
        ratio[:, :4], norms[:, :4] = 0, norms[0, :4]
        finding = only(changed(run, update_ratio=ratio, weight_norm=norms), "update_too_small")
        assert finding.layers == run.names[:4] and finding.remedies[0].action == "add_to_optimizer"


class TestWeights:
    def course(self, end):
        run = flat_loss(healthy())
        return changed(
            run, weight_norm=run.weight_norm[:1] * np.geomspace(1, end, len(run.update_steps))[:, None]
        )

    def test_growth(self):
        assert "weight_growth" in alarms(self.course(1e3))

    def test_collapse(self):
        finding = only(self.course(1e-2), "weight_collapse")
        assert finding.remedies[0].action == "less_weight_decay"

    @pytest.mark.parametrize(("decay", "headline"), [(1.2, "weight_collapse"), (1e-3, "update_too_large")])
    def test_a_decay_that_takes_a_tenth_explains_large_steps(self, decay, headline):
        """lr * weight_decay / (1 - momentum) of SGD: the decay itself moves the weights this much."""
        run = self.course(1e-2)
        group = {"class": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": decay, "parameters": []}
        ratio = np.full_like(run.update_ratio, 3.0)  # not straight back to zero
        only(changed(run, update_ratio=ratio, facts={**run.facts, "optimizers": [group]}), headline)

    @pytest.mark.parametrize(
        ("kind", "decay", "found"),
        [
            ("Lion", 30.0, ["weight_collapse"]),
            ("SGD", 30.0, ["weight_collapse"]),
            ("AdamW", 0.1, []),
            ("Adam", 30.0, []),  # a part of its step, whose size is unknown
        ],
    )
    def test_half_is_enough_where_a_decay_explains_it(self, kind, decay, found):
        group = {"class": kind, "lr": 1e-3, "weight_decay": decay, "parameters": []}
        run = self.course(0.3)
        assert alarms(changed(run, facts={**run.facts, "optimizers": [group]})) == found

    def test_weights_that_no_step_of_an_optimizer_makes_grow(self):
        run = self.course(1e3)
        norm = run.total_norm * np.geomspace(1, 1e4, 200)
        loss = np.geomspace(2.3, 50, 200)
        run = changed(run, total_norm=norm, loss=loss, update_steps=np.arange(1, 11))
        finding = only(run, "weight_growth")
        assert finding.evidence["by_itself"] == 1 and finding.remedies[0].action == "weight_decay"

    @pytest.mark.parametrize(
        ("factor", "move", "decay", "found"),
        [
            (1.03, 0.031, 0.0, ["weight_growth"]),  # all of the step makes them longer
            (1.03, 0.031, -0.01, ["weight_growth"]),
            (1.03, 0.2, 0.0, []),
        ],
    )
    def test_steps_that_multiply_the_weights(self, factor, move, decay, found):
        run = slow(healthy(steps=64))
        norms = run.weight_norm[:1] * factor ** (run.update_steps[:, None] - 1.0)
        ratio = np.full_like(run.update_ratio, move)
        group = {"class": "AdamW", "lr": 1e-3, "weight_decay": decay, "parameters": []}
        facts = {**run.facts, "optimizers": [group]}
        assert alarms(changed(run, weight_norm=norms, update_ratio=ratio, facts=facts)) == found

    @pytest.mark.parametrize("end", [0.6, 1, 5])
    def test_moderate_changes_are_healthy(self, end):
        assert alarms(self.course(end)) == []


class TestClipping:
    def clipped(self, coef, loss_falls=True):
        run = healthy() if loss_falls else flat_loss(healthy())
        coefs = np.full(200, float(coef))
        return changed(run, clip_coef=coefs, threshold=np.minimum(coefs, 1) * run.total_norm)

    def test_always_without_progress(self):
        finding = only(self.clipped(1e-3, loss_falls=False), "always_clipping")
        assert finding.severity == "warning" and finding.remedies[0].action == "raise_max_norm"

    @pytest.mark.parametrize(("kind", "found"), [("SGD", ["always_clipping"]), ("AdamW", []), ("Lion", [])])
    def test_always_with_steps_that_are_too_small_by_it(self, kind, found):
        """The loss has fallen by a tenth. Clipping does not make adaptive steps smaller."""
        run = self.clipped(1e-3)
        facts = {**run.facts, "optimizers": [{"class": kind, "lr": 0.1, "parameters": []}]}
        loss = 2.3 - 0.23 * np.linspace(0, 1, 200)
        ratio = np.full_like(run.update_ratio, 1e-5)
        run = changed(run, facts=facts, loss=loss, update_ratio=ratio)
        assert alarms(run) == found
        assert alarms(changed(run, lr=np.linspace(1e-6, 1e-3, 200))) == []  # it warms up

    @pytest.mark.parametrize(("moved", "found"), [(1e-9, ["always_clipping"]), (1e-5, [])])
    def test_always_with_a_fall_that_such_steps_cannot_make(self, moved, found):
        """The first losses happen to be high."""
        run = self.clipped(1e-3)
        facts = {**run.facts, "optimizers": [{"class": "SGD", "lr": 0.1, "parameters": []}]}
        loss = 2.3 + 0.05 * np.random.default_rng(0).standard_normal(200)
        loss[:3] += 1.0
        run = changed(run, facts=facts, loss=loss, update_ratio=np.full_like(run.update_ratio, moved))
        assert alarms(changed(run, total_norm=100 * run.total_norm)) == found

    @pytest.mark.parametrize("coef", [0.5, 1e-3])
    def test_always_with_progress_is_information(self, coef):
        assert alarms(self.clipped(coef)) == [] and kinds(self.clipped(coef)) == ["always_clipping"]

    def test_never(self):
        run = changed(healthy(), clip_coef=np.ones(200), threshold=np.full(200, 1e4))
        assert only(run, "never_clipping").severity == "info"

    def test_a_threshold_near_the_norms_is_fine(self):
        run = healthy()
        run = changed(run, clip_coef=np.ones(200), threshold=np.full(200, 2 * run.total_norm.max()))
        assert kinds(run) == []


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


class TestPrecision:
    def halves(self, rms):
        run = flat_loss(healthy(rms=rms))
        params = {n: {**p, "dtype": "float16"} for n, p in run.params.items()}
        return changed(run, params=params, update_ratio=np.full_like(run.update_ratio, 3e-3))

    def test_small_float16_gradients(self):
        assert only(self.halves(1e-6), "low_precision_underflow").remedies[0].action == "loss_scaling"

    def test_large_enough_ones(self):
        assert alarms(self.halves(1e-2)) == []

    def test_by_histogram(self):
        run = self.halves(1e-2)
        counts = np.zeros((2, 12, 4), dtype=np.int64)
        counts[..., 1] = 100
        only(changed(run, histogram=counts, histogram_steps=np.array([1, 100])), "low_precision_underflow")

    def test_a_scaled_loss_is_fine(self):
        assert alarms(changed(self.halves(1e-6), loss_scale=np.full(200, 1024.0))) == []


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
