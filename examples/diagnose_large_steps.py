"""Why gradients explode: inputs in the thousands, steps that overshoot further each time, the remedy."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import gradkern

torch.manual_seed(0)
AREA = 500 + 2500 * torch.rand(512, 1)  # square feet
ROOMS = torch.randint(1, 6, (512, 1)).float()
HOUSES = torch.cat([AREA, ROOMS], dim=1)
PRICE = 0.2 * AREA + 30 * ROOMS + 10 * torch.randn(512, 1)  # thousands


def train(x: torch.Tensor, y: torch.Tensor, folder: Path) -> list[gradkern.Finding]:
    """Gradient descent on the mean square error, recorded; returns the diagnosis.

    A step in a direction of curvature c multiplies the error by 1 - lr * c: with a large c it grows.
    """
    net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    with gradkern.GradMonitor(net, optimizer, folder) as monitor:
        for _ in range(100):
            rows = torch.randint(len(x), (64,))
            loss = torch.nn.functional.mse_loss(net(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            monitor.record(loss=loss)
            optimizer.step()
    print(f"loss at the end: {loss.item():.3g}")
    with gradkern.History.open(folder) as history:
        return gradkern.diagnose(history)


def standardized(values: torch.Tensor) -> torch.Tensor:
    return (values - values.mean(dim=0)) / values.std(dim=0)


runs = Path(tempfile.mkdtemp())
(faulty, *_) = train(HOUSES, PRICE, runs / "faulty")
print(f"{faulty.severity}: {faulty.title}. {faulty.why}")
print(faulty.remedies[0].because, faulty.remedies[0].code, sep="\n")
alarms = [f for f in train(standardized(HOUSES), standardized(PRICE), runs / "cured") if f.is_alarm]
print(alarms if alarms else "healthy")
raise SystemExit(0 if faulty.severity == "severe" and not alarms else 1)
