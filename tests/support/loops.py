"""Small training loops that the tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import gradkern
from gradkern.history.layout import Layout
from gradkern.history.rows import StepRow
from gradkern.history.writer import HistoryWriter


def small_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4), nn.LayerNorm(4), nn.Linear(4, 1))


def train(
    model: nn.Module, monitor: Any, optimizer: torch.optim.Optimizer, steps: int, max_norm: float = 0.5
) -> list[gradkern.GradStats]:
    """Clip, record, step; returns the statistics of each step."""
    clipper = gradkern.GradClipper(model, max_norm)
    generator = torch.Generator().manual_seed(1)
    out = []
    for _ in range(steps):
        x = torch.randn(5, 6, generator=generator)
        loss = (model(x) - x.sum(dim=1, keepdim=True)).square().mean()
        loss.backward()
        stats = clipper.clip_()
        monitor.record(stats, loss=loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        out.append(stats)
    return out


def layout(count: int, numel: int = 100) -> Layout:
    names = tuple(f"layers.{i // 2}.{'weight' if i % 2 == 0 else 'bias'}" for i in range(count))
    return Layout(names, np.full(count, numel, dtype=np.int64), np.arange(count))


def step_row(step: int, values: Any, where: Layout, **more: Any) -> StepRow:
    norms = np.asarray(values, dtype=np.float32)
    more.setdefault("phase", "before_clip")
    return StepRow(step, 1000.0 + step, where, norms, norms, float(np.sqrt((norms**2).sum())), **more)


def write_run(folder: Path, values: np.ndarray, first: int = 1, batch: int = 37, **more: Any) -> Layout:
    """Writes one row of norms per step."""
    where = layout(values.shape[1])
    writer = HistoryWriter(folder, {})
    for start in range(0, len(values), batch):
        piece = values[start : start + batch]
        writer.write([step_row(first + start + i, row, where, **more) for i, row in enumerate(piece)])
    writer.close()
    return where
