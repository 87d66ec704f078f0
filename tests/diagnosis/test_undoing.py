"""Steps that undo each other: how far they go, and when that is reported."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradkern.diagnosis import diagnose
from gradkern.diagnosis.case import Case
from gradkern.diagnosis.travel import travel
from tests.support.runs import changed, flat_loss, healthy

_MAKERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
    "Nesterov": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, 0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.0),
}


def trained(name, course, steps=200, **fields):
    """The steps of an optimizer with gradients that are noise, turned around, or the same at each step."""
    run = flat_loss(healthy(steps=steps))
    random = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(int(run.numel.sum()), generator=random) / 6)
    optimizer, fixed = _MAKERS[name]([weight]), torch.randn(weight.numel(), generator=random)
    group = optimizer.param_groups[0]
    norms, looks = [], {}
    for step in range(1, steps + 1):
        turned = {"noise": 0.0, "turned": (-1.0) ** step, "same": 1.0}[course]
        noise = torch.randn(weight.numel(), generator=random)
        weight.grad = 0.01 * (turned * fixed + (0.2 if turned else 1.0) * noise)
        norms.append(float(weight.grad.norm()))
        before = weight.detach().clone()
        optimizer.step()
        looks[step] = (float((weight.detach() - before).norm()), float(before.norm()))
    length, size = np.array([looks[step] for step in run.update_steps]).T
    shares = np.sqrt(run.numel / run.numel.sum())
    settings = {key: group[key] for key in ("lr", "momentum", "betas", "nesterov", "eps") if key in group}
    kind = type(optimizer).__name__
    rms = np.array(norms)[:, None] / np.sqrt(run.numel.sum())
    made = changed(
        run,
        rms=np.repeat(rms, len(run.names), axis=1),
        total_norm=np.array(norms),
        lr=np.full(steps, 0.01),
        weight_norm=size[:, None] * shares,
        update_ratio=np.repeat((length / size)[:, None], len(run.names), axis=1),
        facts={**run.facts, "optimizers": [{"name": "0", "class": kind, **settings}]},
    )
    return changed(made, **fields)


def alarms(run):
    return [finding for finding in diagnose(run) if finding.is_alarm]


class TestTravel:
    @pytest.mark.parametrize("name", _MAKERS)
    def test_it_is_one_for_noise(self, name):
        found = travel(Case(trained(name, "noise")))
        assert len(found) == 7 and found == pytest.approx(np.ones(7), rel=0.1)

    @pytest.mark.parametrize(("name", "least"), [("SGD", 0.05), ("Nesterov", 0.05), ("Adam", 0.05)])
    def test_it_is_small_for_gradients_that_are_turned_around(self, name, least):
        found = travel(Case(trained(name, "turned")))
        assert least < found.min() and found.max() < 0.4

    @pytest.mark.parametrize("name", _MAKERS)
    def test_it_is_large_for_gradients_that_agree(self, name):
        assert travel(Case(trained(name, "same"))).min() > 4

    def test_clipped_gradients_are_what_the_optimizer_sees(self):
        run = trained("SGD", "noise")
        clipped = changed(run, rms=run.rms * 5, clip_coef=np.full(200, 0.2))
        assert travel(Case(clipped)) == pytest.approx(travel(Case(run)))

    @pytest.mark.parametrize(
        "group", [{"class": "RMSprop"}, {"class": "SGD", "momentum": 0.0}, {"class": "SGD", "dampening": 0.5}]
    )
    def test_other_optimizers_are_not_judged(self, group):
        run = trained("SGD", "turned")
        (known,) = run.facts["optimizers"]
        facts = {**run.facts, "optimizers": [{**known, **group}]}
        assert len(travel(Case(changed(run, facts=facts)))) == 0
        facts = {**run.facts, "optimizers": [known, {**known, "lr": 0.1}]}
        assert len(travel(Case(changed(run, facts=facts)))) == 0

    def test_steps_that_were_left_out(self):
        """Only the steps before them are judged."""
        run = trained("SGD", "turned")
        assert len(travel(Case(changed(run, steps=run.steps * 2)))) == 0
        rows = np.append(np.arange(40), np.arange(100, 200))
        late = {
            name: getattr(run, name)[rows] for name in ("rms", "max_abs", "has_grad", "nonfinite", "zeros")
        }
        assert len(travel(Case(changed(run, rows=rows, total_norm=run.total_norm, **late)))) == 3
        assert len(travel(Case(changed(run, skipped=run.steps == 9)))) == 0


class TestUndoing:
    @pytest.mark.parametrize("name", _MAKERS)
    def test_targets_that_are_turned_around(self, name):
        (finding,) = alarms(trained(name, "turned"))
        assert finding.kind == "loss_oscillating" and finding.severity == "warning"
        assert [r.action for r in finding.remedies][:2] == ["check_labels", "shuffle"]
        assert "unrelated gradients" in finding.numbers

    @pytest.mark.parametrize("name", _MAKERS)
    def test_noise_that_cannot_be_learned(self, name):
        assert alarms(trained(name, "noise")) == []

    def test_a_loss_that_falls_is_left_alone(self):
        assert alarms(trained("Adam", "turned", loss=healthy().loss)) == []

    @pytest.mark.parametrize(
        ("loss", "above", "found"), [("mse_loss", 2.0, ["loss_oscillating"]), ("nll_loss", 1.0, [])]
    )
    def test_a_regression_whose_loss_falls_only_at_first(self, loss, above, found):
        """From where it starts to what it costs to say nothing. A classifier's may be on a plateau; without
        the graph it is known by a loss that starts at that of guessing."""
        run = trained("Adam", "turned")
        level = run.loss + np.append(np.geomspace(above, 0.01, 20), np.zeros(180))
        facts = {**run.facts, "graph": {"operations": ["relu", loss], "loss": loss}}
        assert [f.kind for f in alarms(changed(run, loss=level, facts=facts))] == found
        still = level - np.append(np.zeros(40), np.linspace(0, 0.3, 160))
        assert alarms(changed(run, loss=still, facts=facts)) == []

    def test_a_resumed_run_is_left_alone(self):
        """Near a minimum the loss is small, and its gradient is not."""
        run = trained("SGD", "turned")
        assert alarms(changed(run, loss=run.loss / 500)) == []

    def test_layers_without_a_gradient_are_not_judged(self):
        """Adam divides what is left of it by epsilon, so that the steps are short for that reason."""
        run = trained("Adam", "turned")
        rms = run.rms.copy()
        rms[:, :8] = 1e-12
        assert len(travel(Case(changed(run, rms=rms, total_norm=run.total_norm)))) == 0

    def test_a_few_looks_do_not_suffice(self):
        run = trained("SGD", "turned")
        few = {name: getattr(run, name)[:5] for name in ("update_steps", "weight_norm", "update_ratio")}
        assert alarms(changed(run, **few)) == []
