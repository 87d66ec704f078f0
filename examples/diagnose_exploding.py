"""Exploding gradients: weights that multiply the signal at each layer, the diagnosis, and its remedy."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import gradkern


def model(gain: float) -> torch.nn.Module:
    """Twelve ReLU layers; each multiplies the signal by about gain / sqrt(2)."""
    layers: list[torch.nn.Module] = []
    for _ in range(12):
        layers += [torch.nn.Linear(32, 32), torch.nn.ReLU()]
    net = torch.nn.Sequential(*layers, torch.nn.Linear(32, 3))
    for module in net:
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=gain / 32**0.5)
            torch.nn.init.zeros_(module.bias)
    return net


def train(net: torch.nn.Module, folder: Path) -> list[gradkern.Finding]:
    """Two hundred steps, recorded; returns the diagnosis."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    with gradkern.GradMonitor(net, optimizer, folder) as monitor:
        for _ in range(200):
            x = torch.randn(64, 32)
            loss = torch.nn.functional.cross_entropy(net(x), x[:, :3].argmax(dim=1))
            optimizer.zero_grad()
            loss.backward()
            monitor.record(loss=loss)
            optimizer.step()
    print(f"loss at the end: {loss.item():.3g}")
    with gradkern.History.open(folder) as history:
        return gradkern.diagnose(history)


torch.manual_seed(0)
runs = Path(tempfile.mkdtemp())
(faulty, *_) = train(model(gain=3.0), runs / "faulty")
print(f"{faulty.severity}: {faulty.title}. {faulty.why}")
print(faulty.remedies[0].because, faulty.remedies[0].code, sep="\n")
alarms = [f for f in train(model(gain=2**0.5), runs / "cured") if f.is_alarm]  # He's initialization
print(alarms if alarms else "healthy")
raise SystemExit(0 if faulty.kind in ("exploding_gradient", "poor_initialization") and not alarms else 1)
