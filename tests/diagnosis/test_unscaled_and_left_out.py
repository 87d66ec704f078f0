"""Inputs that are far too large, signals that are lost at the start, and parts that never move."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from benchmarks.diagnosis.score import prefix
from gradkern.diagnosis import diagnose
from gradkern.diagnosis.case import Case
from gradkern.diagnosis.sums import starts_as_a_sum
from tests.support.runs import WIDTH, changed, flat_loss, healthy, sloped, slow


def alarms(run):
    return [f.kind for f in diagnose(run) if f.is_alarm]


def large(run, size):
    """Inputs of that rms: the gradient of the first matrix is as many times that of its bias."""
    rms = run.rms.copy()
    rms[:, 0] = size * rms[:, 1]
    return changed(run, rms=rms)


class TestLargeInputs:
    fall = np.exp(-np.arange(200) / 20.0)

    @pytest.mark.parametrize("last", [1.0, 30.0])
    def test_a_loss_that_falls_because_the_outputs_shrink(self, last):
        run = large(changed(healthy(), loss=400 * self.fall + last), 150.0)
        found = diagnose(run)[0]
        assert found.kind == "exploding_gradient" and found.severity == "warning"
        assert found.remedies[0].action == "scale_inputs"

    def test_a_run_that_overcomes_them(self):
        assert alarms(large(changed(healthy(), loss=400 * self.fall + 0.1), 150.0)) == []

    def test_the_same_loss_with_inputs_of_ordinary_size(self):
        assert alarms(changed(healthy(), loss=400 * self.fall + 1.0)) == []

    @pytest.mark.parametrize(("steps", "severities"), [(20, []), (200, ["warning"])])
    def test_an_estimate_that_does_not_last(self, steps, severities):
        """Inputs keep their size; at first the gradients of a critic's biases cancel."""
        run = changed(healthy(), loss=40 * self.fall + 1.0)
        rms = run.rms.copy()
        rms[:steps, 0] = 20 * rms[:steps, 1]
        found = [f for f in diagnose(changed(run, rms=rms)) if f.kind == "exploding_gradient"]
        assert [f.severity for f in found] == severities


class TestInputsThatSaturate:
    def run(self, early, late, size):
        """Tanh, whose first layer passes back `early` of the gradient at the first steps, `late` after."""
        run = large(slow(healthy(layers=2, activation="Tanh")), size)
        norm = float(run.weight_norm[0, 2])
        slope = np.where(np.arange(200) < 20, early, late)
        rms = run.rms.copy()
        rms[:, 1] = slope * rms[:, 3] * norm / np.sqrt(WIDTH)
        rms[:, 0] = size * rms[:, 1]
        return changed(run, rms=rms)

    @pytest.mark.parametrize(("early", "late"), [(0.05, 0.05), (0.05, 0.6), (0.6, 0.05)])
    def test_they_do(self, early, late):
        """A few units that are left learn later."""
        found = diagnose(self.run(early, late, 100.0))[0]
        assert (found.kind, found.layers) == ("saturation", ("0.weight", "0.bias"))

    def test_the_estimate_is_too_large(self):
        """The slope tells that the terms of the bias's gradient cancel over the batch."""
        assert alarms(self.run(0.7, 0.7, 100.0)) == []


def with_optimizers(run, *parts):
    groups = [{"name": str(i), "lr": 1e-3, "parameters": list(names)} for i, names in enumerate(parts)]
    return changed(run, facts={**run.facts, "optimizers": groups})


class TestASecondOptimizer:
    def run(self, bias):
        """Layers "4" and "6" never move; their biases start at zero, or not."""
        run = slow(healthy())
        norms, ratios = run.weight_norm.copy(), run.update_ratio.copy()
        still = [4, 5, 6, 7]
        norms[:, still] = norms[0, still]
        norms[:, [5, 7]] *= bias
        ratios[:, still] = 0
        ratios[:, [5, 7]] = ratios[:, [5, 7]] if bias else np.nan
        return changed(run, weight_norm=norms, update_ratio=ratios), [run.names[i] for i in still]

    @pytest.mark.parametrize("bias", [0.0, 1.0])
    def test_that_takes_no_step(self, bias):
        run, still = self.run(bias)
        found = diagnose(with_optimizers(run, [n for n in run.names if n not in still], still))[0]
        assert found.kind == "update_too_small" and set(found.layers) == set(still)
        assert found.remedies[0].action == "add_to_optimizer"

    @pytest.mark.parametrize(("steps", "found"), [(12, []), (40, ["update_too_small"])])
    def test_that_steps_seldom_gets_its_turn(self, steps, found):
        run, still = self.run(0.0)
        run = with_optimizers(run, [n for n in run.names if n not in still], still)
        assert alarms(prefix(run, steps)) == found

    def test_the_optimizer_moves_others(self):
        """The gradient was zero at each of its steps (the last bias of a Wasserstein critic)."""
        run, _ = self.run(1.0)
        assert alarms(with_optimizers(run, run.names)) == []


def test_weights_of_a_hundredth_whose_loss_stands_still_at_first():
    """Adam makes them grow in a fifth of the run."""
    run = sloped(healthy(), 0.0)
    norms = run.weight_norm * np.where(np.arange(12) % 2, 0, 0.05)
    rms = run.rms.copy()
    rms[:20] *= 1e-5
    random = np.random.default_rng(0)
    loss = 1.4 - 0.2 * np.clip((np.arange(200) - 45) / 155, 0, 1) + 1e-3 * random.standard_normal(200)
    run = changed(run, rms=rms, loss=loss, weight_norm=norms.astype(np.float32))
    found = diagnose(run)
    assert found[0].kind == "poor_initialization" and found[0].remedies[0].action == "he_init"
    falls = changed(run, loss=1.4 - 1.3 * np.clip(np.arange(200) / 100, 0, 1))
    assert "poor_initialization" not in alarms(falls)


@pytest.mark.parametrize(("decades", "first"), [(3.2, "update_too_small"), (6.0, "vanishing_gradient")])
def test_a_gradient_that_fades_because_nothing_moves(decades, first):
    """It stays as it was at the start, which training would mend unless hardly anything is left."""
    run = sloped(flat_loss(healthy()), decades)
    run = changed(run, update_ratio=np.full_like(run.update_ratio, 1e-8))
    assert alarms(run)[:2] == [first, ({"update_too_small", "vanishing_gradient"} - {first}).pop()]


@pytest.mark.parametrize("fall", [0.05, 0.3])
def test_a_loss_that_the_bias_of_the_outputs_lowers(fall):
    """No signal is needed for it to learn how frequent classes are."""
    run, sick = healthy(), sloped(healthy(), 5.0)
    rms = np.concatenate([sick.rms[:60], run.rms[60:]])
    loss = 0.7 * (1 - fall * np.clip(np.arange(200) / 40, 0, 1)) - 0.1 * (np.arange(200) > 60)
    assert alarms(changed(run, rms=rms, loss=loss)) == (["vanishing_gradient"] if fall < 0.1 else [])


@pytest.mark.parametrize(("early", "order"), [(8, ["update_too_large", "dead_units"]), (30, ["dead_units"])])
def test_units_that_the_first_steps_kill(early, order):
    """At the first looks most are alive: the steps are the cause. Otherwise the weights are."""
    run = flat_loss(healthy())
    zeros = run.zeros.copy()
    zeros[:, 3] = 30
    zeros[:4, 3] = early
    ratio = run.update_ratio.copy()
    ratio[:3] = 1.2 if early < 20 else 3e-3
    found = [f for f in diagnose(changed(run, zeros=zeros, update_ratio=ratio)) if f.is_alarm]
    assert [f.kind for f in found] == order
    dead = found[-1]
    assert dead.first_step == (5 if early < 20 else 1)
    assert dead.remedies[0].action == ("lower_lr" if early < 20 else "he_init")


@pytest.mark.parametrize("size", [1.0, 50.0])
def test_a_table_whose_vectors_are_large(size):
    """Its vectors are the inputs of the first layer: they are too large, not the data."""
    run = slow(healthy())
    names = ("embed.weight", *run.names)
    shape = {"shape": [10, WIDTH], "dtype": "float32", "kind": "Embedding", "trainable": True}

    def wide(values):
        return np.concatenate([values[:, :1], values], axis=1)

    fields = ("rms", "max_abs", "has_grad", "nonfinite", "zeros", "weight_norm", "update_ratio")
    columns = {name: wide(getattr(run, name)) for name in fields}
    columns["weight_norm"][:, 0] = size * np.sqrt(10 * WIDTH)
    columns["rms"][:, 1] = size * columns["rms"][:, 2]
    columns["max_abs"] = 3.5 * columns["rms"]
    run = dataclasses.replace(
        run,
        names=names,
        numel=np.append(10 * WIDTH, run.numel),
        params={"embed.weight": shape, **run.params},
        ever_nonzero=np.append(run.ever_nonzero[:1], run.ever_nonzero),
        histogram=np.zeros((0, len(names), 4), dtype=np.int64),
        **columns,
    )
    found = [f for f in diagnose(run) if f.is_alarm]
    assert [f.kind for f in found] == (["poor_initialization", "exploding_gradient"] if size > 1 else [])
    assert not found or found[0].remedies[0].action == "table_init"


@pytest.mark.parametrize(
    ("decades", "steps", "found"), [(3.5, 40, ""), (3.5, 80, "warning"), (5.0, 40, "severe")]
)
def test_a_plateau_of_a_few_sigmoids(decades, steps, found):
    """They start with little of the gradient and learn; only less than that stops a run at once."""
    run = sloped(flat_loss(healthy(steps=steps, activation="Sigmoid")), decades)
    assert [f.severity for f in diagnose(run) if f.is_alarm] == [found] * bool(found)


@pytest.mark.parametrize("ratio", [0.0, 3e-3])
def test_gradients_that_add_up_where_nothing_moves(ratio):
    """The optimizer belongs to another model: it neither clears nor steps."""
    run = flat_loss(healthy())
    rms = run.rms[:1] * np.arange(1, 201, dtype=np.float32)[:, None]
    norms = run.weight_norm[:1] * np.ones((len(run.update_steps), 1), dtype=np.float32)
    run = changed(run, rms=rms, update_ratio=np.full_like(run.update_ratio, ratio), weight_norm=norms)
    first = diagnose(run)[0]
    assert "summed" in first.evidence or first.kind == "update_too_small"
    assert (first.remedies[0].action == "call_step") == (ratio == 0)


@pytest.mark.parametrize(("last", "adds_up"), [(10.5, True), (40.0, False)])
def test_a_norm_that_nesterov_multiplies_while_the_loss_rises_a_little(last, adds_up):
    """If the loss rises as the norm does, steps that are too large explain both."""
    run = flat_loss(healthy())
    growth = np.cumprod([1.0, 2.07, 2.24, 2.4, 2.43, 2.42, *[2.43] * 194])
    loss = np.concatenate([[4.9, 9.3, 9.1, last, last], np.geomspace(21, 1e6, 195)])
    case = Case(changed(run, total_norm=run.total_norm[0] * growth, loss=loss))
    assert starts_as_a_sum(case) == adds_up
