"""Bad initial weights, inf and NaN, and number formats."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.support.findings import alarms, kinds, only
from tests.support.runs import WIDTH, changed, flat_loss, healthy


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
