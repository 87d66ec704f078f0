"""Which remedy comes first, and the numbers that remedies state."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch

import gradkern
from gradkern.diagnosis import Finding, amounts, cures, diagnose, start_cures, step_cures
from gradkern.diagnosis.case import Case
from tests.support.runs import changed, flat_loss, healthy, sloped


def actions(evidence):
    return [remedy.action for remedy in diagnose(evidence)[0].remedies]


def with_optimizer(run, kind, **fields):
    groups = [{"name": "", "class": kind, "lr": 1e-3, "parameters": list(run.names)}]
    return changed(run, facts={**run.facts, "optimizers": groups}, **fields)


def moving(run, *first, rest=3e-3):
    ratio = np.full_like(run.update_ratio, rest)
    ratio[: len(first)] = np.array(first)[:, None]
    return changed(run, update_ratio=ratio)


class TestLearningRate:
    @pytest.mark.parametrize(("first", "factor"), [(0.9, 0.03), (4.0, 0.007), (1e6, 1e-4)])
    def test_the_first_step_tells_by_how_much_to_lower_it(self, first, factor):
        """Later steps show the divergence itself."""
        case = Case(moving(healthy(), first, 50.0, 80.0))
        assert amounts.lower_factor(case) == pytest.approx(factor, rel=0.1)

    def test_after_a_good_first_step_the_largest_one(self):
        assert amounts.lower_factor(Case(moving(healthy(), 0.01, 0.7))) == pytest.approx(0.04, rel=0.1)

    def test_in_the_first_place_it_says_what_comes_next(self):
        run = with_optimizer(flat_loss(moving(healthy(), *[0.9] * 8)), "AdamW")
        first, *others = diagnose(run)[0].remedies
        assert first.action == "lower_lr" and first.because.endswith("repeat with a smaller factor.")
        assert not any("repeat" in remedy.because for remedy in others)

    def test_it_is_always_lowered(self):
        assert amounts.lower_factor(Case(moving(healthy(), 0.01))) == pytest.approx(0.3, rel=0.1)

    @pytest.mark.parametrize(("typical", "factor"), [(3e-8, 7e5), (3e-13, 1e7), (1e-3, 20.0), (8e-3, 3.0)])
    def test_raising_it(self, typical, factor):
        assert amounts.raise_factor(Case(moving(healthy(), rest=typical))) == pytest.approx(factor, rel=0.1)

    def test_weights_that_take_no_change_tell_nothing_but_sgd_does(self):
        run = moving(healthy(), rest=0.0)
        assert amounts.raise_factor(Case(run)) == amounts.LEAST_RAISE
        asked = 1e-3 * np.median(run.total_norm) / np.sqrt((run.weight_norm[0, ::2] ** 2).sum())
        found = amounts.raise_factor(Case(with_optimizer(run, "SGD", lr=np.full(200, 1e-6))))
        assert found == pytest.approx(amounts.GOOD_STEP / (asked * 1e-3), rel=1)


class TestMaxNorm:
    def norms(self, *values, end=0.1):
        loss = np.linspace(2.3, end, len(values))
        return Case(changed(healthy(steps=len(values)), loss=loss, total_norm=np.array(values, dtype=float)))

    def test_of_a_run_that_explodes_from_its_very_start_it_is_the_first(self):
        assert amounts.max_norm(self.norms(0.5, 77, 1e4, 1e9, np.inf, np.nan)) == 0.5
        assert amounts.max_norm(self.norms(0.5, *np.geomspace(10, 1e6, 11), end=50)) == pytest.approx(0.5)

    def test_of_a_run_that_calms_down_it_is_the_calm_part(self):
        assert amounts.max_norm(self.norms(1e5, 1e3, *[2.0] * 18)) == pytest.approx(2.0)

    def test_a_first_step_with_a_small_norm_is_no_measure(self):
        assert amounts.max_norm(self.norms(0.01, *[2.0] * 19)) == pytest.approx(2.0)

    def test_sgd_is_held_to_steps_of_three_percent(self):
        run = flat_loss(moving(healthy(), *[0.9] * 8))
        sgd = with_optimizer(run, "SGD", lr=np.full(200, 5.0))
        size = np.sqrt((run.weight_norm[0, ::2].astype(float) ** 2).sum())
        assert amounts.held_norm(Case(sgd)) == pytest.approx(0.03 * size / 5.0)
        assert amounts.held_norm(Case(with_optimizer(run, "AdamW"))) == np.inf
        (clip,) = [remedy for remedy in diagnose(sgd)[0].remedies if remedy.action == "clip"]
        assert f"max_norm={0.03 * size / 5.0:.2g})" in clip.code and "3 % of their norm" in clip.because


class TestCode:
    """What a remedy prints runs as it is in a loop with a plain optimizer."""

    #: Actions whose code needs a GPU, or a batch with the fault.
    LEFT_OUT = ("loss_scaling", "bfloat16", "float32_weights")

    def remedies(self):
        case = Case(with_optimizer(healthy(), "Adam"))
        finding = Finding("dead_units", "severe", ("2.bias",), evidence={"layers_in_chain": 14})
        makers = [
            getattr(module, name) for module in (cures, start_cures, step_cures) for name in vars(module)
        ]
        makers = [f for f in makers if getattr(f, "__annotations__", {}).get("return") == "Remedy"]
        values = {"case": case, "finding": finding}
        return [f(*(values[k] for k in f.__annotations__ if k in values)) for f in makers]

    def loop(self):
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        x, y = torch.randn(8, 4), torch.randn(8, 4)
        model(x).square().mean().backward()
        optimizer.step()
        step = lambda model, batch: model(batch).square().mean().detach()  # noqa: E731
        names = {
            "torch": torch,
            "gradkern": gradkern,
            "model": model,
            "optimizer": optimizer,
            "module": model,
        }
        names |= {
            "x": x,
            "y": y,
            "mean": 0.0,
            "std": 1.0,
            "y_mean": 0.0,
            "y_std": 1.0,
            "lr": 1e-3,
            "width": 4,
        }
        names |= {"block": torch.nn.Linear(4, 4), "activation": torch.nn.ReLU(), "batch": x, "max_norm": 1.0}
        names |= {"dataset": x, "batch_size": 4}
        targets = torch.zeros(8, dtype=torch.long)
        names |= {"inputs": x, "targets": targets, "outputs": model(x), "monitor": mock.MagicMock()}
        names |= {"loader": [x] * 3, "train_step": step, "lstm": torch.nn.LSTM(4, 4)}
        return names | {"loss": model(x).mean(), "log_likelihood": model(x).mean()}

    def test_it_runs(self):
        ran = set()
        for remedy in self.remedies():
            if remedy.code and remedy.action not in self.LEFT_OUT:
                exec(compile(remedy.code, remedy.action, "exec"), self.loop())
                ran.add(remedy.action)
        torch.autograd.set_detect_anomaly(False)
        assert {"skip_nonfinite", "check_data", "he_init", "clip", "lower_lr", "find_lr"} <= ran
        assert len(ran) >= 20

    def test_a_step_with_nan_is_skipped(self):
        loop = self.loop()
        for param in loop["model"].parameters():
            param.grad.fill_(float("nan"))
        exec(cures.skip_nonfinite().code, loop)
        assert all(param.isfinite().all() for param in loop["model"].parameters())

    def test_comments_stand_on_lines_of_their_own(self):
        lines = [line for remedy in self.remedies() for line in remedy.code.splitlines()]
        assert any("#" in line for line in lines)
        assert all(line.lstrip().startswith("#") for line in lines if "#" in line)

    @pytest.mark.parametrize(
        ("kind", "made"), [("Adam", "torch.optim.Adam("), ("Lion", " Lion("), ("a b", "torch.optim.AdamW(")]
    )
    def test_the_recorded_optimizer_is_named(self, kind, made):
        finding = Finding("update_too_small", "warning", ("2.bias",))
        assert made in cures.add_to_optimizer(Case(with_optimizer(healthy(), kind)), finding).code


@pytest.mark.parametrize(
    ("size", "lowers", "raises"), [(0.3, True, False), (1e-4, False, True), (0.013, False, False)]
)
def test_the_size_of_a_step_is_stated_only_where_the_factor_gives_it(size, lowers, raises):
    """Factors are bounded: a rate is lowered to 0.3 at most, and raised threefold at least."""
    run = healthy()
    case = Case(changed(run, update_ratio=np.full_like(run.update_ratio, size)))
    assert ("so that the first steps move" in step_cures.lower_lr(case).because) == lowers
    assert ("so that a step moves" in step_cures.raise_lr(case).because) == raises


class TestOrder:
    def test_nan_in_data_is_not_blamed_on_the_rate(self):
        """Large first steps do not make a NaN in a run whose norm stays level."""
        run = flat_loss(moving(healthy(), 0.3, 0.25))
        norm, loss = run.total_norm.copy(), run.loss.copy()
        norm[60:], loss[60:] = np.nan, np.nan
        sick = changed(run, total_norm=norm, loss=loss)
        assert [f.kind for f in diagnose(sick)][:2] == ["nonfinite_gradient", "update_too_large"]
        assert actions(sick)[:2] == ["skip_nonfinite", "check_data"]
        assert actions(changed(sick, skipped=np.isnan(norm)))[0] == "check_data"
        norm[5:], loss[5:] = np.nan, np.nan  # too soon to tell
        assert actions(changed(run, total_norm=norm, loss=loss))[:2] == ["lower_lr", "find_lr"]

    def test_16_bit_weights_with_too_small_a_rate_need_a_larger_one_first(self):
        run = flat_loss(moving(healthy(), rest=0.0))
        half = {n: {**p, "dtype": "bfloat16"} for n, p in run.params.items()}
        for rate, first in ((1e-9, "raise_lr"), (1e-3, "float32_weights")):
            sick = with_optimizer(changed(run, params=half), "SGD", lr=np.full(200, rate))
            assert actions(sick)[0] == first

    def test_weights_that_grow_without_large_steps_are_held_first(self):
        run = flat_loss(healthy())
        norms = run.weight_norm[:1] * np.geomspace(1, 1e3, len(run.update_steps))[:, None]
        assert actions(changed(run, weight_norm=norms))[0] == "weight_decay"

    def test_an_adaptive_optimizer_is_warmed_up_rather_than_clipped(self):
        run = flat_loss(moving(healthy(), *[0.9] * 8))
        assert actions(with_optimizer(run, "AdamW"))[:3] == ["lower_lr", "find_lr", "warmup"]
        assert actions(with_optimizer(run, "SGD"))[:3] == ["lower_lr", "find_lr", "clip"]

    def test_relu_layers_that_start_small_are_initialized_first(self):
        run = sloped(healthy(12), 6)
        small = changed(run, weight_norm=0.58 * run.weight_norm)
        assert actions(run)[0] == "residual" and actions(small)[0] == "he_init"
        normed = {**small.facts, "modules": {**small.facts["modules"], "n": "LayerNorm"}}
        assert actions(changed(small, facts=normed))[0] == "residual"


def test_a_gain_that_weights_grew_into_is_growth():
    """The weights grow from step to step, and late in the run each layer multiplies."""
    run = flat_loss(healthy(12))
    rms = run.rms.copy()
    rms[60:] = sloped(run, 0, biases=-5).rms[60:]
    norms = run.weight_norm[:1] * 1.05 ** run.update_steps[:, None]
    found = [f.kind for f in diagnose(changed(run, rms=rms, weight_norm=norms)) if f.is_alarm]
    assert found[0] == "weight_growth" and "exploding_gradient" in found


def test_a_bias_in_front_of_a_normalization_says_nothing_of_the_inputs():
    """Its gradient is rounding errors, which would make the inputs look ten million times too large."""
    run = flat_loss(moving(healthy(activation="BatchNorm1d"), *[0.9] * 8))
    rms = run.rms.copy()
    rms[:, 1] *= 1e-7
    assert actions(changed(run, rms=rms))[0] == "lower_lr"
    rms = run.rms.copy()
    rms[:, 0] *= 300
    assert actions(changed(run, rms=rms))[0] == "scale_inputs"


def with_words(run, *operations, modules=()):
    kinds = {str(at): kind for at, kind in enumerate(modules)}
    return changed(run, facts={"modules": kinds, "graph": {"operations": list(operations)}, "optimizers": []})


def test_a_softmax_in_place_of_an_activation():
    """One that weights something is attention. Both are known from modules, too."""
    run = sloped(flat_loss(healthy()), 6.0)
    alone, attending = ["Linear", "Softmax"], ["MultiheadAttention", "Softmax"]
    assert actions(with_words(run, "addmm", "softmax", "nll_loss", modules=alone))[0] == "relu"
    assert "relu" not in actions(with_words(run, "addmm", "bmm", "softmax", "nll_loss", modules=attending))


def test_inputs_that_overflow():
    run = healthy()
    rms, loss, nonfinite = run.rms.copy(), run.loss.copy(), run.nonfinite.copy()
    rms[:, 0] = 200 * rms[:, 1]
    loss[50:], nonfinite[50:] = np.nan, 1
    found = diagnose(changed(run, rms=rms, loss=loss, nonfinite=nonfinite))
    assert found[0].kind == "nonfinite_gradient" and found[0].remedies[0].action == "scale_inputs"
