"""Faults recognized by their cause: wrong signs, sums, copies of one unit, signals that fade."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from gradkern import GradMonitor, History
from gradkern.diagnosis import diagnose
from gradkern.diagnosis.case import Case
from gradkern.diagnosis.load import read_evidence
from tests.support.runs import WIDTH, changed, healthy, slow

STEPS = 120


def trained(folder, rate, *, sign=1.0, noise=0.3, clear=True, nesterov=False, seed=0):
    """The findings on a small regression by momentum SGD."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    foreach = True if nesterov else None
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, nesterov=nesterov, foreach=foreach)
    with GradMonitor(model, optimizer, folder) as monitor:
        for _ in range(STEPS):
            x = torch.randn(32, 8)
            y = x[:, :1] * x[:, 1:2] + x[:, 2:3] + noise * torch.randn(32, 1)
            loss = torch.nn.functional.mse_loss(model(x), y)
            (sign * loss).backward()
            monitor.record(loss=loss)
            optimizer.step()
            if clear:
                optimizer.zero_grad()
    with History.open(folder) as history:
        return diagnose(history)


def first_remedy(found):
    assert found[0].severity == "severe", [f.kind for f in found]
    return found[0].remedies[0].action


@pytest.mark.parametrize("seed", range(3))
class TestFirstRemedy:
    def test_a_loss_that_is_climbed(self, tmp_path, seed):
        assert first_remedy(trained(tmp_path, 5e-3, sign=-1.0, seed=seed)) == "check_sign"

    def test_steps_that_overshoot(self, tmp_path, seed):
        found = trained(tmp_path, 0.5, seed=seed)
        assert first_remedy(found) in ("lower_lr", "clip")
        assert not {"check_sign", "zero_grad"} & {r.action for f in found for r in f.remedies}

    def test_gradients_with_nesterov_that_are_not_cleared(self, tmp_path, seed):
        """The multi-tensor code adds the momentum to the gradient itself."""
        found = trained(tmp_path, 3e-4, clear=False, nesterov=True, seed=seed)
        assert found[0].remedies[0].action == "zero_grad"


def test_a_loss_that_adam_climbs_with_large_steps(tmp_path):
    """The first steps move small weights by a tenth, and the norm grows as smoothly as that of a sum."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Sigmoid(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), 0.025)
    with GradMonitor(model, optimizer, tmp_path) as monitor:
        for _ in range(STEPS):
            optimizer.zero_grad()
            x = torch.randn(32, 8)
            loss = torch.nn.functional.mse_loss(model(x), x[:, :1])
            (-loss).backward()
            monitor.record(loss=loss)
            optimizer.step()
    with History.open(tmp_path) as history:
        assert np.nanmax(Case(read_evidence(history)).movement[:2]) > 0.1
        assert first_remedy(diagnose(history)) == "check_sign"


def test_a_loss_that_fell_first_is_not_climbed():
    """As in the demo's transformer: 4.8, 3.9, 3.5, and then each step overshoots further."""
    run = healthy()
    grown = np.append([1.0, 0.7, 0.8], np.geomspace(4, 1e6, 197))
    loss = np.append([4.8, 3.9, 3.5], 4.8 * np.geomspace(1, 1e4, 197))
    ratio = np.full_like(run.update_ratio, 3.0)
    ratio[:2] = 0.02
    found = diagnose(changed(run, total_norm=run.total_norm[0] * grown, loss=loss, update_ratio=ratio))
    assert found and found[0].is_alarm
    assert "check_sign" not in {r.action for f in found for r in f.remedies}


def test_weights_that_never_move_climb_nothing():
    """Their loss may rise in the first steps all the same, with the difficulty of the batches."""
    run = healthy(steps=12)
    still = np.repeat(run.weight_norm[:1], len(run.weight_norm), axis=0)
    loss = 0.8 + 0.03 * np.arange(12)
    fixed = changed(run, loss=loss, weight_norm=still, update_ratio=np.zeros_like(run.update_ratio))
    assert "uphill" not in {name for f in diagnose(fixed) for name in f.evidence}


def classifier(folder, *, sign=1.0, depth=2, constant=False, bias=True, factor=1.0, steps=80):
    """The findings on blobs, by Adam."""
    torch.manual_seed(0)
    sizes = [8] + [32] * (depth - 1) + [5]
    layers = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(fan_in, fan_out, bias=bias), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    if constant:
        for p in model.parameters():
            torch.nn.init.constant_(p, 0.1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2 if depth < 10 else 1e-3)
    centers = torch.randn(5, 8)
    with GradMonitor(model, optimizer, folder) as monitor:
        for _ in range(steps):
            y = torch.randint(0, 5, (32,))
            loss = torch.nn.functional.cross_entropy(model(centers[y] + torch.randn(32, 8)), y) * factor
            optimizer.zero_grad()
            (sign * loss).backward()
            monitor.record(loss=loss)
            optimizer.step()
    with History.open(folder) as history:
        return diagnose(history)


class TestClassifier:
    def test_a_cross_entropy_that_adam_climbs(self, tmp_path):
        """Its norm stays within a hundredfold: the gradient of a cross-entropy is bounded."""
        found = classifier(tmp_path, sign=-1.0, steps=30)
        assert found[0].kind == "exploding_gradient" and found[0].severity == "severe"
        assert found[0].remedies[0].action == "check_sign"

    def test_constant_weights_of_a_shallow_network(self, tmp_path):
        found = classifier(tmp_path, constant=True)
        assert found[0].kind == "poor_initialization"
        assert set(found[0].layers) == {"0.weight", "0.bias"}

    def test_a_signal_that_fades_without_biases(self, tmp_path):
        """The gradient is below what Adam adds to its denominator, so that the steps are small as well."""
        found = classifier(tmp_path, depth=30, bias=False)
        assert found[0].kind == "poor_initialization"
        assert found[0].remedies[0].action == "he_init"

    def test_a_loss_that_is_multiplied_by_zero(self, tmp_path):
        assert classifier(tmp_path, factor=0.0)[0].kind == "no_gradient"

    @pytest.mark.parametrize("depth", [1, 2, 4])
    def test_the_same_without_a_fault(self, tmp_path, depth):
        assert not [f.kind for f in classifier(tmp_path, depth=depth) if f.is_alarm]


@pytest.mark.parametrize("value", [0.5, 7.0])
def test_biases_hold_tanh_at_both_ends(value):
    run = slow(healthy(activation="Tanh"))
    norms = run.weight_norm.copy()
    norms[:, 1::2] = 0.5 * np.sqrt(WIDTH)
    norms[:, 5] = value * np.sqrt(WIDTH)
    found = [f for f in diagnose(changed(run, weight_norm=norms)) if f.kind == "saturation"]
    assert [f.layers for f in found] == ([("4.weight", "4.bias")] if value > 4 else [])


def test_weights_that_a_penalty_collapses_are_no_good_learning():
    """The penalty lowered the loss to that of guessing."""
    run = healthy()
    loss = np.log(WIDTH) + 30 * np.exp(-np.arange(200) / 20)
    norms = run.weight_norm * np.geomspace(1, 0.05, len(run.update_steps))[:, None].astype(np.float32)
    found = diagnose(changed(run, loss=loss, weight_norm=norms))
    assert [f.kind for f in found if f.is_alarm] == ["weight_collapse"]
    found = diagnose(changed(run, loss=loss - np.log(WIDTH), weight_norm=norms))
    assert not [f.kind for f in found if f.is_alarm]


@pytest.mark.parametrize("by_itself", [True, False])
def test_weights_that_grow_at_one_rate(by_itself):
    """Five times, by a penalty that makes half of each step; or linearly."""
    run = slow(healthy())
    at = run.update_steps
    growth = 5.0 ** (at / 200) if by_itself else 1 + 4 * at / 200
    norms = run.weight_norm[:1] * growth[:, None].astype(np.float32)
    run = changed(run, weight_norm=norms, update_ratio=np.full_like(run.update_ratio, 0.015))
    assert [f.kind for f in diagnose(run) if f.is_alarm] == (["weight_growth"] if by_itself else [])
