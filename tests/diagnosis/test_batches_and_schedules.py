"""Batches in turn, single bad batches, signs of losses, schedules: what is said of them, and the remedies."""

from __future__ import annotations

import numpy as np
import pytest

from gradkern.diagnosis import diagnose
from gradkern.diagnosis.case import Case
from gradkern.diagnosis.climb import falls_without_end
from gradkern.diagnosis.rounds import repetition
from tests.support.runs import changed, flat_loss, healthy, slow


def alarms(run):
    return [finding.kind for finding in diagnose(run) if finding.is_alarm]


def actions(run):
    return [remedy.action for remedy in diagnose(run)[0].remedies]


def classifying(run, classes):
    """The run as one of a classifier with so many outputs."""
    last = list(run.names)[-2]
    params = {**run.params, last: {**run.params[last], "shape": [classes, 32]}}
    facts = {**run.facts, "graph": {"operations": ["relu", "nll_loss"], "loss": "nll_loss"}}
    return changed(run, params=params, facts=facts)


def with_group(run, **group):
    return changed(run, facts={**run.facts, "optimizers": [{"name": "0", "class": "SGD"} | group]})


class TestInTurn:
    def rounds(self, period, height=0.5, noise=0.1, classes=5):
        random = np.random.default_rng(0)
        pattern = np.random.default_rng(1).permutation(np.linspace(-1, 1, period))
        loss = 1.2 + np.exp(-np.arange(200) / 30) + noise * random.standard_normal(200)
        rms = healthy().rms.copy()
        rms[:, -1] = 0.7 * (1 - np.exp(-1.2)) / np.sqrt(healthy().numel[-1])  # mostly of one class
        loss = loss + height * pattern[np.arange(200) % period]
        return classifying(changed(healthy(), loss=loss, rms=rms), classes)

    def test_batches_of_one_class_at_a_time(self):
        (finding,) = [f for f in diagnose(self.rounds(5)) if f.is_alarm]
        assert finding.kind == "loss_oscillating" and "number of classes" in finding.why
        assert [r.action for r in finding.remedies][:2] == ["shuffle", "check_labels"]

    @pytest.mark.parametrize(
        "changes", [{"period": 7}, {"classes": 11}, {"height": 0.05, "noise": 0.01}, {"noise": 0.6}]
    )
    def test_other_rounds_and_small_ones_are_left_alone(self, changes):
        """A round of another length may be that of an epoch in a fixed order."""
        assert alarms(self.rounds(**{"period": 5, **changes})) == []

    def test_as_many_data_sets_as_classes(self, graph):
        """The last bias says that each batch holds several classes, where the loss is known."""
        run = self.rounds(5)
        rms = run.rms.copy()
        rms[:, -1] = 0.1 / np.sqrt(run.numel[-1])
        assert alarms(changed(run, rms=rms)) == ([] if graph else ["loss_oscillating"])

    @pytest.mark.parametrize(("height", "found"), [(0.35, ["loss_oscillating"]), (0.15, [])])
    def test_weaker_rounds_count_if_the_whole_run_has_them(self, height, found):
        """They are too weak for the last two thirds of it."""
        run = self.rounds(5, height=height, noise=0.33)
        share, _ = repetition(run.loss[len(run.loss) // 3 :], 5)
        assert share < 0.5 and alarms(run) == found

    @pytest.mark.parametrize(("alone", "found"), [(True, ["loss_oscillating"]), (False, [])])
    def test_weak_rounds_count_if_the_last_bias_sees_one_class(self, alone, found):
        """Its gradient is then that of targets that are all the same."""
        run = self.rounds(5, height=0.25, noise=0.24)
        rms, last = run.rms.copy(), len(run.names) - 1
        norm = (1 - np.exp(-run.loss)) * np.sqrt(5 / 4) * (1.0 if alone else 0.3)
        rms[:, last] = norm / np.sqrt(run.numel[last])
        assert alarms(changed(run, rms=rms, total_norm=run.total_norm)) == found

    @pytest.mark.parametrize(
        ("levels", "found"), [((1.0, 1.0), ["loss_oscillating"]), ((0.2, 1.8), []), ((0.02, 0.18), [])]
    )
    def test_two_data_sets_in_turn(self, levels, found):
        """Their losses differ before the steps tell. Two kinds of one data set come apart later."""
        random = np.random.default_rng(0)
        later = np.minimum(np.arange(200) / 20, 1)
        apart = np.where(np.arange(200) % 2, 0.4, -0.4) * later * (levels[0] == levels[1])
        loss = np.array(levels)[np.arange(200) % 2] + apart + 0.02 * random.standard_normal(200) * levels[1]
        moved = np.full_like(healthy().update_ratio, 0.03)
        assert alarms(changed(healthy(), loss=loss, update_ratio=moved)) == found

    def test_two_aims_in_turn_are_not_blamed_on_the_classes(self):
        loss = 1.0 + np.where(np.arange(200) % 2, 0.3, -0.3) * np.linspace(0, 1, 200)
        run = classifying(changed(healthy(), loss=loss), 6)
        assert not any("classes" in finding.why for finding in diagnose(run))

    @pytest.mark.parametrize("period", [2, 3, 8])
    def test_repetition(self, period):
        random = np.random.default_rng(2)
        pattern = random.standard_normal(period)
        pattern -= pattern.mean()
        share, spread = repetition(pattern[np.arange(160) % period] - np.arange(160) / 10, period)
        assert share == pytest.approx(1.0) and spread == pytest.approx(pattern.std())
        share, _ = repetition(random.standard_normal(160), period)
        assert abs(share) < 0.3
        assert repetition(np.full(40, 2.0), period) == (0.0, 0.0)


class TestSigns:
    def climbing(self, factor):
        """Steps up the gradient explain the rise of a loss that is not a classifier's."""
        run = healthy()
        growth = np.linspace(1, factor, 200)
        sizes = 10.0 * np.ones_like(run.weight_norm)
        norm = np.gradient(0.7 * growth) / (0.003 * 10 * np.sqrt(6))
        return changed(run, loss=0.7 * growth, total_norm=norm, weight_norm=sizes)

    def test_a_loss_that_is_climbed(self):
        (finding,) = [f for f in diagnose(self.climbing(60)) if f.is_alarm]
        assert finding.kind == "exploding_gradient" and finding.remedies[0].action == "check_sign"
        assert alarms(self.climbing(10)) == []  # that of a generator whose critic wins

    @pytest.mark.parametrize(("depth", "first"), [(-500, "check_sign"), (-1, "clip")])
    def test_a_part_of_the_wrong_sign(self, depth, first):
        """The loss falls far below zero before the run breaks down."""
        loss = np.append(np.linspace(1, depth, 120), np.full(80, 200.0))
        norm = healthy().total_norm * np.append(np.ones(80), np.geomspace(1, 1e4, 120))
        found = diagnose(changed(healthy(), loss=loss, total_norm=norm))[0]
        assert found.kind == "exploding_gradient" and found.remedies[0].action == first

    @pytest.mark.parametrize("first", [7e-9, -7e-9, 0.0])
    @pytest.mark.parametrize("epochs", [4, 10])
    def test_the_loss_of_a_policy_starts_at_zero(self, first, epochs):
        """It is zero up to rounding wherever a batch is new, and falls while the batch is used."""
        loss = -0.03 * np.sin(np.arange(200) % epochs / epochs)
        loss[::epochs] = first
        assert not falls_without_end(Case(changed(healthy(), loss=loss)))

    @pytest.mark.parametrize(
        ("course", "loss", "found"),
        [
            (-np.geomspace(10, 120, 200), "mse_loss", ["weight_growth"]),  # a penalty from the start
            (1 - np.geomspace(1, 20, 200), "nll_loss", ["weight_growth"]),
            (-np.geomspace(10, 120, 200), "div", []),  # a log-likelihood
            (-np.geomspace(10, 25, 200), "mse_loss", []),
            (1 - 20 * np.sqrt(np.linspace(0, 1, 200)), "mse_loss", []),  # slower and slower
            (1 - np.append(np.geomspace(1, 20, 180), np.ones(20)), "mse_loss", []),  # it comes back
        ],
    )
    def test_a_loss_that_cannot_be_negative(self, course, loss, found, graph):
        """Only the graph tells it from a log-likelihood."""
        found = found if graph else []
        run = healthy()
        sizes = run.weight_norm[:1] * np.geomspace(1, 2.3, len(run.update_steps))[:, None]
        facts = {**run.facts, "graph": {"operations": ["relu", loss], "loss": loss}}
        fallen = changed(run, loss=course, weight_norm=sizes, facts=facts)
        assert alarms(fallen) == found
        if found:
            assert actions(fallen)[0] == "check_sign" and "below zero" in diagnose(fallen)[0].why
        assert alarms(changed(fallen, weight_norm=run.weight_norm)) == []

    @pytest.mark.parametrize(("end", "severity"), [(np.log(32) + 0.07, "warning"), (1.2, "info")])
    def test_a_penalty_that_falls_is_no_learning(self, end, severity):
        """The weights are gone; what is left of the loss is that of guessing, and a little of the penalty."""
        run = healthy()
        loss = end + 20 * np.exp(-np.arange(200) / 20)
        norms = run.weight_norm[:1] * np.geomspace(1, 0.01, len(run.update_steps))[:, None]
        found = next(f for f in diagnose(changed(run, loss=loss, weight_norm=norms)))
        assert found.kind == "weight_collapse" and found.severity == severity


class TestOneBadBatch:
    def thrown(self, moved=3e-3, rate=1e-3):
        """A batch at step 60 throws the weights; soon nothing is finite."""
        run = flat_loss(healthy())
        norm, loss, ratio, rates = run.total_norm.copy(), run.loss.copy(), run.update_ratio.copy(), run.lr
        norm[59:62] *= (3e3, 1e6, 1e9)
        loss[59:62] *= (1e3, 1e4, 1e8)
        norm[62:], loss[62:] = np.nan, np.nan
        ratio[run.update_steps < 60] = moved
        rates = np.where(run.steps >= 59, rate, rates)
        return changed(run, total_norm=norm, loss=loss, update_ratio=ratio, lr=rates)

    def test_it_explains_what_follows(self):
        found = diagnose(self.thrown())
        assert found[0].kind == "gradient_spike" and found[0].first_step == 60
        assert [r.action for r in found[0].remedies][:2] == ["clip", "check_data"]
        assert "nonfinite_gradient" in alarms(self.thrown())

    def test_a_larger_step_of_its_aftermath_is_not_taken_for_it(self):
        """So large a step far behind it that the others are not even spikes beside it."""
        run = self.thrown()
        norm = np.append(run.total_norm[:59], run.total_norm[58] * np.full(141, 3e3))
        norm[80] *= 1e6
        sizes = np.where(run.update_steps < 60, 1.0, 9.0)[:, None] * run.weight_norm
        found = diagnose(
            changed(run, total_norm=norm, loss=np.nan_to_num(run.loss, nan=9.0), weight_norm=sizes)
        )
        assert found[0].kind == "gradient_spike" and found[0].first_step == 60

    def test_a_look_at_the_step_itself(self):
        """It has the weights before the step, and how far the step moved them."""
        run = self.thrown()
        norm = np.append(run.total_norm[:63], run.total_norm[58] * np.append(400, np.full(136, 200.0)))
        norm[59:63] = norm[58]
        run = changed(run, total_norm=norm, loss=np.append(run.loss[:59], np.full(141, 9.0)))
        ratio = np.where(run.update_steps == 64, 6.0, 3e-3)[:, None] * np.ones_like(run.update_ratio)
        found = diagnose(changed(run, update_ratio=ratio))
        assert [f.first_step for f in found if f.kind == "gradient_spike"] == [64]
        assert found[0].kind == "gradient_spike" and "update_too_large" in [f.kind for f in found[1:]]
        assert not [f for f in diagnose(run) if f.kind == "gradient_spike"]

    def test_its_aftermath_is_no_noise(self):
        """The steps after it are far above the baseline too, and so are more than 2 % of all."""
        run = self.thrown()
        norm, loss = run.total_norm.copy(), np.nan_to_num(run.loss, nan=9.0)
        norm[60:] = norm[58] * np.append([400, 2000, 6000, 40] * 5, np.full(120, 20.0))
        sizes = np.where(run.update_steps < 60, 1.0, 9.0)[:, None] * run.weight_norm
        found = diagnose(changed(run, total_norm=norm, loss=loss, weight_norm=sizes))
        assert "gradient_spike" not in alarms(changed(run, total_norm=norm, loss=loss))
        assert found[0].kind == "gradient_spike" and found[0].first_step == 60

    @pytest.mark.parametrize("changes", [{"moved": 0.3}, {"rate": 0.2}])
    def test_unless_the_steps_were_large_before(self, changes):
        assert alarms(self.thrown(**changes))[0] == "nonfinite_gradient"


class TestClipping:
    def clipped(self, factor, moved, group=None, loss=None):
        run = flat_loss(healthy()) if loss is None else changed(healthy(), loss=loss)
        ratio = np.full_like(run.update_ratio, moved)
        limit = factor * run.total_norm
        run = changed(run, update_ratio=ratio, clip_coef=np.full(200, factor), threshold=limit)
        return with_group(run, **(group or {}))

    @pytest.mark.parametrize(
        ("factor", "first", "remedy"),
        [(1e-4, "always_clipping", "raise_max_norm"), (0.05, "update_too_small", "raise_lr")],
    )
    def test_clipping_explains_small_steps_only_if_others_would_be_large(self, factor, first, remedy):
        found = diagnose(self.clipped(factor, 1e-7))
        assert found[0].kind == first and found[0].remedies[0].action == remedy

    @pytest.mark.parametrize(("factor", "found"), [(1e-7, ["always_clipping"]), (1e-3, [])])
    def test_adam_does_not_undo_a_clip_to_its_epsilon(self, factor, found):
        loss = slow(healthy()).loss
        assert alarms(self.clipped(factor, 3e-3, {"class": "Adam", "eps": 1e-8}, loss)) == found


def test_a_decay_of_a_third_explains_norms_that_were_larger_at_first():
    run = flat_loss(healthy())
    norms = run.weight_norm[:1] * np.geomspace(1, 1e-3, len(run.update_steps))[:, None]
    ratio = run.update_ratio.copy()
    ratio[:4] = 0.3
    sick = changed(run, weight_norm=norms, update_ratio=ratio)
    sick = changed(sick, total_norm=np.append(run.total_norm[:2] * 500, run.total_norm[2:]))
    assert alarms(sick)[0] == "exploding_gradient"
    assert (
        alarms(with_group(sick, lr=0.003, weight_decay=100.0, **{"class": "AdamW"}))[0] == "weight_collapse"
    )


class TestSchedules:
    def still(self, start, rates):
        run = flat_loss(healthy(), start)
        ratio = np.full_like(run.update_ratio, 1e-7)
        return classifying(changed(run, update_ratio=ratio, lr=rates), 10)

    @pytest.mark.parametrize(("start", "found"), [(2.3, ["update_too_small"]), (0.8, [])])
    def test_an_untrained_model_is_at_no_end(self, start, found):
        """A falling rate excuses small steps of a resumed run only."""
        assert alarms(self.still(start, np.geomspace(1e-7, 1e-9, 200))) == found

    def test_a_cycle_is_no_end(self):
        cycles = 1e-7 * (1.1 + np.cos(np.pi * (1 + np.arange(200) / 40)))
        assert alarms(self.still(0.8, cycles)) == ["update_too_small"]

    def test_a_rate_that_grows_without_end(self):
        run = slow(healthy())
        ratio = run.update_ratio * np.geomspace(1, 1e3, len(run.update_steps))[:, None]
        loss = run.loss + np.geomspace(1e-3, 30, 200)
        grown = changed(run, update_ratio=ratio, loss=loss, lr=np.geomspace(1e-3, 10, 200))
        assert diagnose(grown)[0].kind == "update_too_large" and actions(grown)[0] == "check_schedule"
        warmed = changed(grown, lr=np.minimum(np.geomspace(1e-3, 10, 200), 1.0))
        assert actions(warmed)[0] == "lower_lr"

    @pytest.mark.parametrize(("end", "found"), [(10, ["update_too_large"]), (0.02, [])])
    def test_a_rate_that_grows_after_the_last_look(self, end, found):
        """The loss has risen since."""
        run = slow(healthy())
        early = run.update_steps <= 64
        looks = {name: getattr(run, name)[early] for name in ("update_steps", "weight_norm", "update_ratio")}
        rates = np.append(np.full(64, 1e-3), np.geomspace(1e-3, end, 136))
        grown = changed(
            run, lr=rates, loss=run.loss + np.append(np.zeros(150), np.linspace(0, 90, 50)), **looks
        )
        assert alarms(grown) == found

    @pytest.mark.parametrize(("momentum", "first"), [(0.999, "less_momentum"), (0.9, "lower_lr")])
    def test_a_momentum_of_a_thousand_steps(self, momentum, first):
        run = flat_loss(changed(healthy(), update_ratio=np.full_like(healthy().update_ratio, 0.9)))
        assert actions(with_group(run, momentum=momentum))[0] == first


@pytest.mark.parametrize(("base", "action"), [(0.5, "check_schedule"), (0.99, "raise_lr")])
def test_a_rate_that_plunges(base, action):
    """The steps end with it, and the loss stays where it is."""
    run = flat_loss(healthy())
    ratio = run.update_ratio * np.append(1e-4, np.zeros(len(run.update_steps) - 1))[:, None]
    ratio[1:] = 1e-9 if action == "raise_lr" else 0
    norms = np.repeat(run.weight_norm[:1], len(run.update_steps), axis=0)
    norms[1:] *= 1 + 1e-6
    plunging = changed(run, update_ratio=ratio, weight_norm=norms, lr=1e-3 * base ** np.arange(200))
    assert diagnose(classifying(plunging, 10))[0].kind == "update_too_small"
    assert actions(classifying(plunging, 10))[0] == action
    assert (alarms(plunging) == ["update_too_small"]) == (
        action == "check_schedule"
    )  # or a resumed run's end
    ratio[0] = 3e-3  # the looks are closer together at first
    assert ratio.mean() * 200 > 0.01
    assert diagnose(classifying(changed(plunging, update_ratio=ratio), 10))[0].kind == "update_too_small"


@pytest.mark.parametrize(
    ("kind", "code"), [("SGD", '"weight_decay"] = 0.0001'), ("Adam", "weight_decay=0.01")]
)
def test_weight_decay_fits_the_optimizer(kind, code):
    run = healthy()
    sizes = run.weight_norm[:1] * np.geomspace(1, 12, len(run.update_steps))[:, None]
    found = diagnose(with_group(flat_loss(changed(run, weight_norm=sizes)), **{"class": kind}))
    (decay,) = [
        r for f in found if f.kind == "weight_growth" for r in f.remedies if r.action == "weight_decay"
    ]
    assert code in decay.code


@pytest.mark.parametrize(("first", "action"), [(0, "check_data"), (100, "skip_nonfinite")])
def test_if_no_step_is_finite_there_is_none_to_keep(first, action):
    run = flat_loss(healthy())
    rms, loss, nonfinite = run.rms.copy(), run.loss.copy(), run.nonfinite.copy()
    rms[first:], loss[first:], nonfinite[first:] = np.nan, np.nan, 1
    broken = changed(run, rms=rms, loss=loss, nonfinite=nonfinite)
    assert diagnose(broken)[0].kind == "nonfinite_gradient" and actions(broken)[0] == action


@pytest.mark.parametrize(("start", "severity"), [(0.002, "info"), (2.3, "severe")])
def test_a_classifier_that_was_trained_before_is_not_stuck(start, severity, graph):
    """Without the graph it may be a regression that is stuck."""
    severity = "warning" if severity == "info" and not graph else severity
    run = classifying(flat_loss(healthy(), start), 10)
    run = changed(run, loss=start + (run.loss - start) / 100)
    norms = np.repeat(run.weight_norm[:1], len(run.update_steps), axis=0)
    found = diagnose(changed(run, update_ratio=np.full_like(run.update_ratio, 1e-7), weight_norm=norms))
    assert [f.severity for f in found if f.kind == "update_too_small"] == [severity]
