"""Wrong signs and sums of gradients, told from steps that overshoot: by the losses of the first steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradkern import GradMonitor, History
from gradkern.diagnosis import diagnose

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


def test_a_loss_that_fell_first_is_not_climbed():
    """As in the demo's transformer: 4.8, 3.9, 3.5, and then each step throws the weights further."""
    from tests.support.runs import changed, healthy

    run = healthy()
    grown = np.append([1.0, 0.7, 0.8], np.geomspace(4, 1e6, 197))
    loss = np.append([4.8, 3.9, 3.5], 4.8 * np.geomspace(1, 1e4, 197))
    ratio = np.full_like(run.update_ratio, 3.0)
    ratio[:2] = 0.02
    found = diagnose(changed(run, total_norm=run.total_norm[0] * grown, loss=loss, update_ratio=ratio))
    assert found and found[0].is_alarm
    assert "check_sign" not in {r.action for f in found for r in f.remedies}
