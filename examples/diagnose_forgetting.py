"""Vanishing over time: an RNN that forgets the start of its sequence, and an LSTM that keeps it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import gradkern


class Recall(torch.nn.Module):
    """Says at the end of a sequence whether its first number was positive."""

    def __init__(self, kind: type[torch.nn.RNN] | type[torch.nn.LSTM]) -> None:
        super().__init__()
        self.core, self.head = kind(1, 32, batch_first=True), torch.nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.core(x)
        logits: torch.Tensor = self.head(states[:, -1])
        return logits


def train(net: Recall, folder: Path) -> list[gradkern.Finding]:
    """Two hundred steps on sequences of 40, recorded; returns the diagnosis."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    over_time = gradkern.GradientOverTime(net.core)  # no parameter's gradient shows what is forgotten
    with gradkern.GradMonitor(net, optimizer, folder) as monitor:
        for _ in range(200):
            x = torch.randn(64, 40, 1)
            loss = torch.nn.functional.cross_entropy(net(x), (x[:, 0, 0] > 0).long())
            optimizer.zero_grad()
            loss.backward()
            monitor.record(loss=loss, extra=over_time.take())
            optimizer.step()
    print(f"loss at the end: {loss.item():.3f}")
    with gradkern.History.open(folder) as history:
        return gradkern.diagnose(history)


torch.manual_seed(0)
runs = Path(tempfile.mkdtemp())
(faulty, *_) = train(Recall(torch.nn.RNN), runs / "faulty")
print(f"{faulty.severity}: {faulty.title}. {faulty.why}")
print(faulty.remedies[0].because, faulty.remedies[0].code, sep="\n")

cured = Recall(torch.nn.LSTM)
torch.nn.init.constant_(cured.core.bias_hh_l0.detach()[32:64], 3.0)  # open forget gates
alarms = [f for f in train(cured, runs / "cured") if f.is_alarm]
print(alarms if alarms else "healthy")
raise SystemExit(0 if "decades_over_time" in faulty.evidence and not alarms else 1)
