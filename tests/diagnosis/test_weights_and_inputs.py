"""Small trainings with a fault of the weights, the inputs or a batch, whose headline names it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradkern import GradMonitor, History
from gradkern.diagnosis import diagnose
from gradkern.diagnosis.load import read_evidence
from tests.support.runs import changed, healthy, sloped, slow

STEPS = 60


def net(*, activation=nn.ReLU, norm=False, depth=3, width=24, inputs=8, outputs=4):
    parts: list[nn.Module] = []
    for before in [inputs] + [width] * (depth - 2):
        parts += [nn.Linear(before, width), *([nn.LayerNorm(width)] if norm else []), activation()]
    return nn.Sequential(*parts, nn.Linear(width, outputs))


def recorded(folder, model, *, optimizer=None, loss=F.cross_entropy, spoil=None, after=None, steps=STEPS):
    """The evidence of a small classification, or of a regression for a loss that compares real numbers."""
    optimizer = optimizer or torch.optim.Adam(model.parameters(), 3e-3)
    torch.manual_seed(7)
    with GradMonitor(model, optimizer, folder) as monitor:
        for step in range(1, steps + 1):
            x = torch.randn(32, 8)
            y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
            outputs = model(x if spoil is None else spoil(x, step))
            value = loss(outputs, y if loss is F.cross_entropy else x[:, :1])
            value.backward()
            monitor.record(loss=value)
            optimizer.step()
            optimizer.zero_grad()
            if after is not None:
                after(model)
    with History.open(folder) as history:
        return read_evidence(history)


def headline(evidence):
    found = diagnose(evidence)
    assert found and found[0].is_alarm, [(f.kind, f.severity) for f in found]
    return found[0]


def alarms(evidence):
    return [f.kind for f in diagnose(evidence) if f.is_alarm]


@torch.no_grad()
def times(factor):
    def change(model):
        for parameter in model.parameters():
            parameter.mul_(factor)

    return change


def filled(model, change):
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                change(module.weight)
                module.bias.zero_()
    return model


class TestGrowth:
    def test_parameters_that_no_step_of_theirs_makes_grow(self, tmp_path):
        """By 3 % a step, which normalization hides from the loss. Fast matrices hide it from their sum."""
        torch.manual_seed(0)

        @torch.no_grad()
        def inflate(model):
            for parameter in model.parameters():
                parameter.mul_(1.03)

        finding = headline(recorded(tmp_path, net(norm=True), after=inflate))
        assert finding.kind == "weight_growth" and finding.evidence["by_itself"] == 1
        assert finding.remedies[0].action == "weight_decay"

    def test_the_same_model_without_it(self, tmp_path):
        torch.manual_seed(0)
        assert alarms(recorded(tmp_path, net(norm=True))) == []

    def test_a_penalty_that_is_subtracted(self, tmp_path, graph):
        """Cross-entropy cannot be negative. Other losses may be."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 4))
        weight = model[0].weight

        def praised(outputs, targets):
            return F.cross_entropy(outputs, targets) - 0.05 * weight.square().sum()

        optimizer = torch.optim.SGD(model.parameters(), 0.3)
        with GradMonitor(model, optimizer, tmp_path) as monitor:
            for _ in range(80):
                x = torch.randn(32, 8)
                value = praised(model(x), (x[:, 0] > 0).long())
                value.backward()
                monitor.record(loss=value)
                optimizer.step()
                optimizer.zero_grad()
        with History.open(tmp_path) as history:
            found = alarms(read_evidence(history))
        assert found == (["weight_growth"] if graph else [])


@pytest.mark.parametrize("last", [1.6, 1.7, 1.8, 1.9])
def test_a_growth_up_to_the_last_look(last):
    """Something multiplies the weights until the last look, whose size is the first one times the growth, but
    for rounding."""
    run = changed(healthy(), loss=np.full(200, 2.3))
    norms = np.ones_like(run.weight_norm) / 3 * last ** ((run.update_steps[:, None] - 1) / 199)
    found = diagnose(changed(run, weight_norm=norms, update_ratio=np.full_like(run.update_ratio, 1e-6)))
    (finding,) = [f for f in found if f.kind == "weight_growth"]
    assert finding.first_step <= 200 and finding.evidence["growth"] == pytest.approx(last, rel=1e-5)


class TestCollapse:
    @pytest.mark.parametrize("decay", [2.0, 60.0])
    def test_a_decay_inside_an_adaptive_step(self, tmp_path, decay):
        torch.manual_seed(0)
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), 5e-3, weight_decay=decay)
        finding = headline(recorded(tmp_path, model, optimizer=optimizer))
        assert finding.kind == "weight_collapse" and finding.remedies[0].action == "less_weight_decay"

    @pytest.mark.parametrize(("decay", "found"), [(2.0, ["weight_collapse"]), (1e-3, [])])
    def test_a_decay_that_outweighs_the_gradient_of_a_loss_that_falls(self, decay, found):
        run = slow(healthy(steps=100))
        norms = run.weight_norm[:1] * np.exp(-0.01 * (run.update_steps[:, None] - 1.0))
        group = {"class": "Adam", "lr": 1e-3, "weight_decay": decay, "parameters": []}
        facts = {**run.facts, "optimizers": [group]}
        ratio = np.full_like(run.update_ratio, 0.0125)
        assert alarms(changed(run, weight_norm=norms, update_ratio=ratio, facts=facts)) == found

    def test_it_explains_gradients_that_vanish_from_the_first_step_on(self):
        run = sloped(changed(healthy(steps=100), loss=np.full(100, 2.3)), 5)
        norms = run.weight_norm[:1] * np.exp(-0.02 * (run.update_steps[:, None] - 1.0))
        ratio = np.full_like(run.update_ratio, 0.025)
        found = alarms(changed(run, weight_norm=norms, update_ratio=ratio))
        assert found[:2] == ["weight_collapse", "vanishing_gradient"]

    def test_a_first_step_straight_back(self):
        """It moves the weights by 0.9 of their norm, and leaves a tenth of it."""
        run = changed(healthy(), loss=np.full(200, 2.3))
        norms = run.weight_norm[:1] * (0.1 ** np.minimum(np.arange(len(run.update_steps)), 3))[:, None]
        ratio = np.full_like(run.update_ratio, 0.9)
        assert headline(changed(run, weight_norm=norms, update_ratio=ratio)).kind == "weight_collapse"


class TestFirstWeights:
    def test_one_number_is_told_by_the_norms(self, tmp_path):
        """All gradients of the first layers are rounding errors, since the outputs are alike."""
        torch.manual_seed(0)
        model = filled(net(depth=5), lambda w: w.fill_(0.05))
        finding = headline(recorded(tmp_path, model))
        assert finding.kind == "poor_initialization" and "crest" in finding.evidence

    def test_orthogonal_weights_of_one_norm(self):
        from gradkern.diagnosis.case import Case
        from gradkern.diagnosis.rules.alike import constant_weights

        run = healthy()
        assert constant_weights(Case(run)) == []

    def test_outputs_that_no_normalization_divides(self, tmp_path):
        torch.manual_seed(0)
        model = filled(net(norm=True, depth=4), lambda w: w.normal_(0, 5 / w.shape[1] ** 0.5))
        finding = headline(recorded(tmp_path, model))
        assert finding.kind == "poor_initialization" and finding.evidence["gain"] > 4

    def test_a_first_loss_far_above_guessing_yes_or_no(self, tmp_path):
        torch.manual_seed(0)
        model = filled(net(outputs=1, norm=True), lambda w: w.normal_(0, 1 / w.shape[1] ** 0.5))
        with torch.no_grad():
            model[-1].weight.mul_(60)

        def decided(outputs, targets):
            return F.binary_cross_entropy_with_logits(outputs, (targets > 0).float())

        finding = headline(recorded(tmp_path, model, loss=decided))
        assert finding.kind == "poor_initialization"

    def test_tanh_that_gets_hundredths(self, tmp_path):
        torch.manual_seed(0)
        model = filled(net(activation=nn.Tanh, depth=6), lambda w: w.normal_(0, 0.01))
        finding = headline(recorded(tmp_path, model))
        assert finding.kind in ("poor_initialization", "vanishing_gradient")

    def test_tanh_that_is_too_deep_for_the_defaults(self, tmp_path):
        """Steps are tiny, because hardly any signal passes 16 layers, and not because of the rate."""
        torch.manual_seed(0)
        model = net(activation=nn.Tanh, depth=16)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        finding = headline(recorded(tmp_path, model, optimizer=optimizer))
        assert finding.kind in ("vanishing_gradient", "poor_initialization")

    def test_units_that_amplify_until_they_die(self):
        """The first two steps tell that the signal was passed on."""
        run = slow(healthy(layers=3))
        gain = np.array([[1.0, 1, 3, 1, 3, 1]]) / np.nan_to_num(run.weight_norm[:1, :1]) * np.sqrt(32)
        norms = np.repeat(run.weight_norm[:1, :1] * gain, len(run.update_steps), axis=0).astype(np.float32)
        rms = run.rms.copy()
        rms[:2, 4] = 8 * rms[:2, 5]
        assert alarms(changed(run, weight_norm=norms, rms=rms)) == ["poor_initialization"]


class TestUnits:
    def test_a_softplus_of_the_loss_is_no_activation(self, tmp_path):
        """Units that are stuck at the ends of tanh are saturated, not dead."""
        torch.manual_seed(0)
        model = net(activation=nn.Tanh, outputs=1)
        with torch.no_grad():
            model[0].bias.copy_(torch.where(torch.arange(24) % 2 == 0, 12.0, -12.0))

        def log_cosh(outputs, targets):
            gap = outputs - targets
            return (gap + F.softplus(-2 * gap)).mean() - np.log(2)

        assert headline(recorded(tmp_path, model, loss=log_cosh)).kind == "saturation"

    def test_gradients_that_vanish_beside_a_second_path(self):
        """The layers are not on every path from the loss, so that the graph alone does not link them."""
        run = sloped(changed(healthy(), loss=np.full(200, 2.3)), 6)
        names = [name for name in run.names if name.endswith("weight")]
        facts = {**run.facts, "graph": {"order": list(run.names), "serial": names[:1]}}
        assert headline(changed(run, facts=facts)).kind == "vanishing_gradient"
        level = changed(sloped(healthy(), 3), facts=facts)
        assert "vanishing_gradient" not in alarms(level)


class TestInputs:
    def test_missing_values_in_most_batches(self, tmp_path):
        torch.manual_seed(0)
        chance = torch.Generator().manual_seed(3)

        def sentinels(x, step):
            return x.masked_fill(torch.rand(x.shape, generator=chance) < 0.01, -999.0)

        finding = headline(recorded(tmp_path, net(), spoil=sentinels))
        assert finding.kind == "exploding_gradient" and finding.evidence["input_rms"] > 10
        assert finding.remedies[0].action == "scale_inputs"

    def test_first_layers_that_were_frozen_at_first(self, tmp_path):
        torch.manual_seed(0)
        model = net()
        first = [*model[0].parameters(), *model[2].parameters()]
        for parameter in first:
            parameter.requires_grad_(False)

        def thaw(x, step):
            if step == 6:
                for parameter in first:
                    parameter.requires_grad_(True)
            return 100 * x

        found = diagnose(recorded(tmp_path, model, spoil=thaw))
        assert found[0].kind == "exploding_gradient" and found[0].evidence["input_rms"] > 30


class TestSpikes:
    def spiked(self, factor, jump, spread=0.1):
        run = healthy()
        random = np.random.default_rng(0)
        norm = np.median(run.total_norm) * np.exp(spread * random.standard_normal(200))
        loss = run.loss.copy()
        norm[120] *= factor
        loss[120] += jump
        return changed(run, total_norm=norm, loss=loss)

    def test_less_than_a_hundredfold_out_of_a_calm_course(self):
        assert alarms(self.spiked(50, 0.2)) == ["gradient_spike"]

    def test_not_without_a_loss_that_stands_out(self):
        assert alarms(self.spiked(50, 0.0)) == []

    def test_not_where_norms_are_spread_widely(self):
        assert alarms(self.spiked(50, 0.2, spread=1.0)) == []

    def test_a_cliff_of_a_recurrent_network_does_not_show_in_the_loss(self):
        run = self.spiked(300, 0.0)
        recurrent = {**run.facts, "modules": {**run.facts["modules"], "core": "LSTM"}}
        assert alarms(run) == ["gradient_spike"] and alarms(changed(run, facts=recurrent)) == []
        assert alarms(changed(self.spiked(300, 3.0), facts=recurrent)) == ["gradient_spike"]

    def test_a_clipped_one_whose_batch_is_bad(self):
        run = self.spiked(300, 5.0)
        coef = np.ones(200)
        coef[120] = 0.01
        assert [f.severity for f in diagnose(changed(run, clip_coef=coef))] == ["warning"]


def test_ones_overflow_sixteen_bits_at_once():
    """The weights are the cause of what is not finite."""
    run = healthy()
    sides = {"0.weight": [32, 8], "10.weight": [8, 32]}
    shapes = {name: sides.get(name, details["shape"]) for name, details in run.params.items()}
    params = {name: {**p, "shape": shapes[name]} for name, p in run.params.items()}
    numel = np.array([int(np.prod(shapes[name])) for name in run.names])
    norms = np.where(["weight" in name for name in run.names], np.sqrt(numel), 0.0)
    norms = np.repeat(norms[None], len(run.update_steps), axis=0).astype(np.float32)
    norms[1:] = np.nan
    run = dataclasses.replace(run, params=params, numel=numel, weight_norm=norms)
    nan = np.full_like(run.rms, np.nan)
    bad = changed(run, rms=nan, nonfinite=np.ones_like(run.nonfinite), loss=np.full(200, np.nan))
    assert headline(bad).kind == "poor_initialization"


def test_inputs_that_pass_beside_normalization(tmp_path, graph):
    """The stream of a residual network is not normalized in front of its outputs. The kind of the loss tells
    that its first value was raised tenfold, which is an alarm even if the run learns well."""

    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm = nn.Linear(8, 24), nn.LayerNorm(24)
            self.inner, self.head = nn.Linear(24, 24), nn.Linear(24, 4)

        def forward(self, x):
            x = self.stem(x)
            return self.head(x + torch.relu(self.inner(self.norm(x))))

    torch.manual_seed(0)
    finding = diagnose(recorded(tmp_path, Beside(), spoil=lambda x, step: 200 * x))[0]
    assert finding.kind == "exploding_gradient" and finding.evidence["input_rms"] > 50
    assert finding.is_alarm == graph
    torch.manual_seed(0)
    assert alarms(recorded(tmp_path / "well", Beside())) == []


def test_targets_of_hundreds_of_outputs_without_a_bias(tmp_path, graph):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 1, bias=False))

    def far(outputs, targets):
        return F.mse_loss(outputs, 300 * targets)

    evidence = recorded(tmp_path, model, loss=far)
    if not graph:
        assert "exploding_gradient" not in alarms(evidence)
        return
    finding = headline(evidence)
    assert finding.kind == "exploding_gradient" and finding.evidence["first_error"] > 100


def test_outputs_whose_inputs_are_alike(tmp_path):
    """Where the signal has faded, a softmax passes on the same number for all units."""
    torch.manual_seed(0)
    parts = [nn.Linear(8, 24)]
    for _ in range(3):
        parts += [nn.Softmax(dim=-1), nn.Linear(24, 24)]
    model = nn.Sequential(*parts, nn.Softmax(dim=-1), nn.Linear(24, 1))
    assert headline(recorded(tmp_path, model, loss=F.mse_loss)).kind == "vanishing_gradient"


@pytest.mark.parametrize(("scale", "found"), [(300.0, ["poor_initialization"]), (1.0, [])])
def test_outputs_whose_bias_is_frozen(tmp_path, graph, scale, found):
    """It does not tell whether a large first loss is a mean or a sum. A sum of guesses is steady."""
    torch.manual_seed(0)
    model = net()
    model[-1].bias.requires_grad_(False)
    model[0].bias.requires_grad_(False)

    def cost(outputs, targets):
        signs = (targets[:, 0] > 0).long()
        return F.cross_entropy(outputs, signs, reduction="mean" if scale > 1 else "sum")

    def spoil(x, step):
        return x * (scale if step % 2 else scale**0.8)

    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-4)
    got = alarms(recorded(tmp_path, model, optimizer=optimizer, loss=cost, spoil=spoil, steps=30))
    assert got == found if graph else set(got) <= set(found), got


def test_a_loud_output_explains_units_that_saturate_later():
    """Its gradients are as many times too large, and drive the units before it to the ends of their range."""
    run = slow(healthy(layers=4, activation="Tanh"))
    norms = run.weight_norm.copy()
    norms[:, -2] *= 20
    norms[4:, 2:6:2] *= 12
    assert alarms(changed(run, weight_norm=norms))[0] == "poor_initialization"
