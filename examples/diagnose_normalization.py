"""Batch normalization against vanishing gradients: the same sigmoid layers with and without it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import gradkern


def model(normalize: bool) -> torch.nn.Module:
    """Ten sigmoid layers of 32 units. The chain rule multiplies ten factors below 1."""
    layers: list[torch.nn.Module] = []
    for width in (8, *[32] * 9):
        layers.append(torch.nn.Linear(width, 32))
        if normalize:
            layers.append(torch.nn.BatchNorm1d(32))
        layers.append(torch.nn.Sigmoid())
    return torch.nn.Sequential(*layers, torch.nn.Linear(32, 3))


def train(net: torch.nn.Module, folder: Path) -> list[gradkern.Finding]:
    """Two hundred steps, recorded; returns the diagnosis."""
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
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
(faulty, *_) = train(model(normalize=False), runs / "faulty")
print(f"{faulty.severity}: {faulty.title}. {faulty.why}")
for remedy in faulty.remedies[:3]:
    print(f"  {remedy.action}: {remedy.because}")
alarms = [f for f in train(model(normalize=True), runs / "cured") if f.is_alarm]
print(alarms if alarms else "healthy")
actions = [remedy.action for remedy in faulty.remedies]
raise SystemExit(
    0 if faulty.kind == "vanishing_gradient" and "normalization" in actions and not alarms else 1
)
