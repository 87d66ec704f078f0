"""Vanishing gradients: twelve sigmoid layers, the diagnosis, and the model with the remedies."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import gradkern


def model(activation: type[torch.nn.Module], residual: bool) -> torch.nn.Module:
    """Twelve layers of 32 units."""

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.activation = torch.nn.Linear(32, 32), activation()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.activation(self.layer(x))
            return x + out if residual else out

    return torch.nn.Sequential(torch.nn.Linear(8, 32), *(Block() for _ in range(12)), torch.nn.Linear(32, 3))


def train(net: torch.nn.Module, folder: Path) -> list[gradkern.Finding]:
    """Two hundred steps, recorded; returns the diagnosis."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    with gradkern.GradMonitor(net, optimizer, folder) as monitor:
        for _ in range(200):
            x = torch.randn(64, 8)
            loss = torch.nn.functional.cross_entropy(net(x), x[:, :3].argmax(dim=1))
            optimizer.zero_grad()
            loss.backward()
            monitor.record(loss=loss)
            optimizer.step()
    print(f"loss at the end: {loss.item():.3f}")
    with gradkern.History.open(folder) as history:
        return gradkern.diagnose(history)


torch.manual_seed(0)
runs = Path(tempfile.mkdtemp())
(faulty, *_) = train(model(torch.nn.Sigmoid, residual=False), runs / "faulty")
print(f"{faulty.severity}: {faulty.title}. {faulty.why}")
for remedy in faulty.remedies[:2]:
    print(f"  {remedy.action}: {remedy.because}")
alarms = [f for f in train(model(torch.nn.ReLU, residual=True), runs / "cured") if f.is_alarm]
print(alarms if alarms else "healthy")
raise SystemExit(0 if faulty.kind == "vanishing_gradient" and not alarms else 1)
