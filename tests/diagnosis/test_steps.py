"""Steps that are too large or too small, weights, and clipping."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.findings import alarms, kinds, only
from tests.support.runs import changed, flat_loss, healthy, slow


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
