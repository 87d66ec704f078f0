"""The gradient at a recurrent network's input over time: against autograd, and what a diagnosis says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradkern
from gradkern import GradientOverTime, GradMonitor


def norms_of(over_time):
    (values,) = over_time.take().values()
    return values


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("needed", [False, True])
def test_is_the_norm_of_the_gradient_at_each_step(kind, batch_first, needed):
    torch.manual_seed(0)
    rnn = kind(3, 5, batch_first=batch_first)
    x = torch.randn(4, 7, 3) if batch_first else torch.randn(7, 4, 3)
    last = (lambda out: out[:, -1]) if batch_first else (lambda out: out[-1])
    reference = x.clone().requires_grad_()
    last(rnn(reference)[0]).square().sum().backward()
    expected = reference.grad.double().norm(dim=(0, 2) if batch_first else (1, 2))
    rnn.zero_grad()
    with GradientOverTime(rnn) as over_time:
        source = x.clone().requires_grad_(needed)
        given = 2 * source / 2 if needed else source
        (last(rnn(given)[0]).square().sum() + given.sum()).backward()
        assert source.requires_grad == needed  # the caller's tensor is as it was
        torch.testing.assert_close(norms_of(over_time), expected, rtol=1e-6, atol=0)
        assert over_time.take() == {}
    last(rnn(x)[0]).sum().backward()
    assert over_time.take() == {}


def test_micro_batches_are_added_up_and_other_calls_passed_over():
    rnn, x = nn.RNN(3, 5), torch.randn(7, 4, 3)
    with GradientOverTime(rnn, "core") as over_time:
        rnn(x)[0][-1].sum().backward()
        once = over_time.take()
        assert list(once) == ["gradient_over_time/core"]
        for _ in range(2):
            rnn(x)[0][-1].sum().backward()
        torch.testing.assert_close(norms_of(over_time), 2**0.5 * once["gradient_over_time/core"])
        with torch.no_grad():
            rnn(x)
        rnn(nn.utils.rnn.pack_sequence([x[:, 0], x[:5, 1]]))[0].data.sum().backward()
        assert over_time.take() == {}


def test_a_long_sequence_has_64_positions():
    rnn, x = nn.GRU(2, 4), torch.randn(1000, 2)
    with GradientOverTime(rnn) as over_time:
        rnn(x)[0].sum().backward()
        assert norms_of(over_time).shape == (64,)


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"\[GradientOverTime\] module: expected a torch.nn.Module, got list"):
        GradientOverTime([])


class Recall(nn.Module):
    """Outputs at the end what it read at the beginning."""

    def __init__(self, kind):
        super().__init__()
        self.core = kind(1, 32, batch_first=True)
        self.head = nn.Linear(32, 1)
        if kind is nn.LSTM:
            with torch.no_grad():
                self.core.bias_hh_l0[32:64] = 3.0

    def forward(self, x):
        return self.head(self.core(x)[0][:, -1])


def recall(kind, folder, steps=60, length=60):
    torch.manual_seed(0)
    model = Recall(kind)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    over_time = GradientOverTime(model.core)
    with GradMonitor(model, optimizer, folder) as monitor:
        for _ in range(steps):
            x = torch.randn(64, length, 1)
            loss = nn.functional.mse_loss(model(x), x[:, 0].sign())
            optimizer.zero_grad()
            loss.backward()
            monitor.record(loss=loss, extra=over_time.take())
            optimizer.step()
    with gradkern.History.open(folder) as history:
        found = gradkern.diagnose(history)
        return [f for f in found if "decades_over_time" in f.evidence], len(history.extra)


def test_an_rnn_forgets_and_an_lstm_with_open_gates_does_not(tmp_path):
    (finding,), positions = recall(nn.RNN, tmp_path / "rnn")
    assert positions == 60 and finding.evidence["positions"] == 60
    assert finding.kind == "vanishing_gradient" and finding.layers == ("core.weight_hh_l0",)
    assert finding.severity == "warning" and finding.evidence["decades_over_time"] > 8
    assert finding.remedies[0].action == "gated"
    assert recall(nn.LSTM, tmp_path / "lstm")[0] == []
