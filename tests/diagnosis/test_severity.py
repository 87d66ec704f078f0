"""What is for information only because the model learns well, and the signature of gradients that add up."""

from __future__ import annotations

import numpy as np
import pytest

from gradkern.diagnosis import diagnose
from gradkern.diagnosis.case import Case
from gradkern.diagnosis.sums import starts_as_a_sum
from tests.support.runs import WIDTH, changed, flat_loss, healthy, sloped, slow


def alarms(evidence):
    return [finding.kind for finding in diagnose(evidence) if finding.is_alarm]


def said(evidence, kind):
    return [finding.severity for finding in diagnose(evidence) if finding.kind == kind]


class TestLearnsWell:
    @pytest.mark.parametrize(("end", "well"), [(0.3, True), (0.6, False), (2.3, False)])
    def test_four_fifths_of_the_loss(self, end, well):
        run = changed(healthy(), loss=np.geomspace(2.3, end, 200))
        assert Case(run).learns_well is well

    def test_what_was_given_back_does_not_count(self):
        loss = np.concatenate([np.geomspace(2.3, 0.01, 100), np.linspace(0.01, 0.4, 100)])
        assert not Case(changed(healthy(), loss=loss)).learns_well

    def test_a_loss_that_jumped_first_is_no_measure(self):
        loss = np.concatenate([[2.3], np.geomspace(200, 1.5, 199)])
        assert not Case(changed(healthy(), loss=loss)).learns_well

    def test_a_loss_of_nan_is_not_well(self):
        loss = np.geomspace(2.3, 0.1, 200)
        loss[50] = np.nan
        assert not Case(changed(healthy(), loss=loss)).learns_well


class TestEased:
    def dead(self, *columns):
        run = healthy()
        zeros = run.zeros.copy()
        zeros[:, columns] = int(0.85 * WIDTH)
        return changed(run, zeros=zeros)

    def test_dead_units_of_a_model_that_learns_well(self):
        assert said(self.dead(5), "dead_units") == ["info"]
        assert said(slow(self.dead(5)), "dead_units") == ["warning"]

    def test_most_of_the_model_is_an_alarm_whatever_the_loss_does(self):
        assert said(self.dead(1, 3, 5, 7), "dead_units") == ["warning"]

    @pytest.mark.parametrize(("decades", "severity"), [(3.2, "info"), (6.0, "severe")])
    def test_a_gradient_that_fades_a_little(self, decades, severity):
        assert said(sloped(healthy(12), decades), "vanishing_gradient") == [severity]
        assert said(slow(sloped(healthy(12), decades)), "vanishing_gradient") == [
            "severe" if decades > 4 else "warning"
        ]

    @pytest.mark.parametrize(("grown", "severity"), [(1.5, "info"), (40, "warning")])
    def test_large_steps_that_replace_the_first_weights(self, grown, severity):
        """The loss falls all the same."""
        run = healthy()
        ratio, norms = run.update_ratio.copy(), run.weight_norm[:1] * np.ones_like(run.weight_norm)
        ratio[:2], norms[2:] = 0.9, norms[0] * grown
        loss = np.append([2.3, 9, 8, 7, 6, 5], np.geomspace(2.3, 0.1, 194))
        found = said(changed(run, update_ratio=ratio, weight_norm=norms, loss=loss), "update_too_large")
        assert found == [severity]

    @pytest.mark.parametrize(("end", "severity"), [(np.log(WIDTH), ["severe"]), (2.5, [])])
    def test_a_large_first_step_of_a_classifier_that_ends_at_guessing(self, end, severity):
        run = healthy()
        ratio = run.update_ratio.copy()
        ratio[0] = 0.3
        facts = {**run.facts, "graph": {"operations": ["relu", "nll_loss"], "loss": "nll_loss"}}
        loss = end + (4.3 - end) * np.exp(-np.arange(200) / 20)
        assert said(changed(run, update_ratio=ratio, loss=loss, facts=facts), "update_too_large") == severity

    def test_a_parameter_that_is_left_out_stays_an_alarm(self):
        run = healthy()
        ratio, norms = run.update_ratio.copy(), run.weight_norm.copy()
        ratio[:, 11], norms[:, 11] = 0, norms[0, 11]
        assert said(changed(run, update_ratio=ratio, weight_norm=norms), "update_too_small") == ["warning"]


def summed(steps, *, turning=0.0, noise=0.5, seed=0):
    """Norms of sums of noisy gradients whose direction turns."""
    random = np.random.default_rng(seed)
    angle = turning * np.arange(steps)
    signal = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    gradients = np.concatenate([signal, noise / 10 * random.standard_normal((steps, 100))], axis=1)
    return np.linalg.norm(np.cumsum(gradients, axis=0), axis=1), np.linalg.norm(gradients, axis=1)


class TestStartsAsASum:
    @pytest.mark.parametrize("noise", [0.0, 0.5, 1.5])
    def test_of_sums_and_of_what_they_are_made_of(self, noise):
        for seed in range(10):
            total, single = summed(60, noise=noise, seed=seed)
            assert starts_as_a_sum(Case(changed(healthy(steps=60), total_norm=total)))
            assert not starts_as_a_sum(Case(changed(healthy(steps=60), total_norm=single)))

    @pytest.mark.parametrize("factor", [0.9, 1.0, 1.02, 3.5, 30.0])
    def test_another_growth_is_none(self, factor):
        norm = np.minimum(factor ** np.arange(60.0), 1e30)
        assert not starts_as_a_sum(Case(changed(healthy(steps=60), total_norm=norm)))

    def test_norms_that_do_not_stay_smooth(self):
        """Later the norms jump, as with momentum; the first steps and the loss give the answer."""
        total = summed(80)[0]
        total[20:] *= np.exp(0.15 * np.random.default_rng(1).standard_normal(60))
        run = flat_loss(changed(healthy(steps=80), total_norm=total))
        finding = diagnose(run)[0]
        assert finding.kind == "exploding_gradient" and finding.remedies[0].action == "zero_grad"

    def test_twenty_smooth_steps_that_do_not_start_so_are_chance(self):
        """A small model that leaves its plateau: 1, 2.1, 1.3, 1.2, 1.8, …"""
        first = [0.56, 1.15, 0.72, 0.67, 1.0, 1.28, 1.55, 1.9, 1.76, 1.8]
        norm = np.array([*first, 3.24, 3.25, 3.24, 2.69, 4.31, 3.7, 3.38, 4.37, 3.02, 3.5])
        assert alarms(flat_loss(changed(healthy(steps=20), total_norm=norm))) == []

    def test_steps_that_are_too_large_for_it_are_told_to_clear_gradients(self):
        total = summed(60)[0]
        run = changed(flat_loss(healthy(steps=60)), total_norm=np.where(np.arange(60) < 20, total, 3.0))
        loss = np.where(np.arange(60) < 20, 2.3, 50.0)
        finding = diagnose(changed(run, loss=loss, update_ratio=np.full_like(run.update_ratio, 0.8)))[0]
        assert finding.kind == "update_too_large"
        assert [r.action for r in finding.remedies[:2]] == ["zero_grad", "lower_lr"]


def test_spreads_of_a_bayesian_layer_multiply_nothing():
    """Two-dimensional parameters that are not named weights: their size is no gain."""
    run = healthy(12, bias=False)
    large = changed(run, weight_norm=8 * run.weight_norm)
    assert "poor_initialization" in alarms(large)
    names = tuple(name.replace("weight", "rho") for name in run.names)
    renamed = changed(large, names=names, params=dict(zip(names, run.params.values())))
    assert "poor_initialization" not in alarms(renamed)


@pytest.mark.parametrize(("known", "found"), [(True, True), (False, False)])
def test_a_branch_of_other_names_is_no_chain(known, found, graph):
    """Attention that pools starts uniform, so that its gradient is small. Only the graph tells the order."""
    run = slow(sloped(healthy(4), 5.0))
    names = tuple(f"{m}.{leaf}" for m in ("view", "gate", "weigh", "head") for leaf in ("weight", "bias"))
    facts = {**run.facts, "graph": {"order": list(names), "serial": list(names)} if known else {}}
    renamed = changed(run, names=names, params=dict(zip(names, run.params.values())), facts=facts)
    assert ("vanishing_gradient" in alarms(renamed)) == (found and graph)


class TestPartsOfUnknownOrder:
    def two_models(self, graph):
        """A generator and its critic: gradients of each are level, the generator's are small."""
        run = flat_loss(sloped(healthy(12), 0))
        rms = run.rms.copy()
        rms[:, :12] *= 1e-5
        names = tuple(("gen." if i < 12 else "critic.") + name for i, name in enumerate(run.names))
        order = {"order": list(names)} if graph else {}
        facts = {**run.facts, "graph": order}
        return changed(run, names=names, rms=rms, params=dict(zip(names, run.params.values())), facts=facts)

    def test_they_are_no_chain(self):
        assert "vanishing_gradient" not in alarms(self.two_models(graph=False))

    def test_they_are_where_one_is_seen_to_follow_the_other(self, graph):
        assert ("vanishing_gradient" in alarms(self.two_models(graph=True))) == graph


def test_one_step_at_which_the_forward_signal_seems_to_fade_is_none():
    """The first bias's gradients cancel over the batch at one step, and its input looks large."""
    run = healthy(12)
    rms = run.rms.astype(float)
    rms[:1, 1::2] *= 10.0 ** np.linspace(-3.5, 0, 12)
    assert "poor_initialization" not in alarms(changed(run, rms=rms.astype(np.float32)))
    rms[1:, 1::2] *= 10.0 ** np.linspace(-3.5, 0, 12)
    assert "poor_initialization" in alarms(changed(run, rms=rms.astype(np.float32)))


def test_a_heavy_tail_is_no_spike():
    """A norm of 32 times the usual one, after one of 10 times."""
    run = healthy()
    norm, loss = run.total_norm.copy(), run.loss.copy()
    norm[140] *= 32
    loss[140] += 3
    assert alarms(changed(run, total_norm=norm, loss=loss)) == ["gradient_spike"]
    norm[128] *= 9.5
    assert alarms(changed(run, total_norm=norm, loss=loss)) == []


class TestGrowth:
    def grown(self, sizes):
        run = healthy()
        at = np.interp(run.update_steps, np.arange(1, 201), sizes)
        return changed(run, weight_norm=(run.weight_norm[:1] * at[:, None]).astype(np.float32))

    def test_small_weights_that_find_their_size(self):
        run = self.grown(np.linspace(1, 12, 200))
        assert said(run, "weight_growth") == ["info"]
        assert said(flat_loss(run), "weight_growth") == ["severe"]

    def test_what_grows_by_the_same_factor_at_each_step(self):
        assert said(self.grown(np.geomspace(1, 12, 200)), "weight_growth") == ["warning"]
