"""Runs made from formulas, already downsampled, from which pictures are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gradkern.history.format import EXPONENTS, FORMATS
from gradkern.history.layout import Layout
from gradkern.history.rows import HistogramRow, StepRow, WeightsRow
from gradkern.history.writer import HistoryWriter
from gradkern.report.bins import Bins
from gradkern.report.data import (
    CURVE_BINS,
    RATIO_CELLS,
    RMS_CELLS,
    Clipping,
    Histogram,
    Matrix,
    ReportData,
    columns_for,
)

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">\x1b[2J\u202e&amp;<!--"


def names_of(count: int) -> tuple[str, ...]:
    kinds = (
        "attn.qkv.weight",
        "attn.qkv.bias",
        "attn.proj.weight",
        "mlp.up.weight",
        "mlp.down.weight",
        "ln.weight",
    )
    body = [f"blocks.{i // len(kinds)}.{kinds[i % len(kinds)]}" for i in range(max(0, count - 2))]
    return ("embed.weight", *body, "head.weight")[:count]


def make_run(params: int, steps: int, *, seed: int = 0, loss: bool = True, broken: bool = True) -> ReportData:
    rng = np.random.default_rng(seed)
    at = np.arange(1, steps + 1, dtype=np.int64)
    norm = np.exp(0.3 * rng.standard_normal(steps) + 2 * np.exp(-at / (steps / 8)) - 0.5)
    if broken and steps > 10:
        norm[int(steps * 0.7)] = np.nan
        norm[int(steps * 0.4)] *= 50
    bins = Bins.of(at, CURVE_BINS)
    coef = np.minimum(1.0, 1.0 / (norm + 1e-6))  # NaN stays NaN
    losses = 2 + 6 * np.exp(-at / (steps / 5)) + 0.1 * rng.standard_normal(steps)
    if not loss:
        losses[:] = np.nan
    matrices = {
        "rms": _matrix(rng, params, at, 1e-4, 1.0, broken),
        "ratio": _matrix(rng, params, at, 1e-3, 0.25, False),
    }
    return ReportData(
        title="a run",
        names=names_of(params),
        numel=np.full(params, 4096),
        records=steps,
        bins=bins,
        series=_series(bins, norm, losses, coef),
        rates=Clipping.of(at, coef, coef < 1),
        matrices=matrices,
        summary=_summary(names_of(params), norm, losses),
        max_norm=1.0,
        ratio_note="",
        histogram=_histogram(rng, steps),
    )


def _series(bins: Bins, norm: np.ndarray, losses: np.ndarray, coef: np.ndarray) -> dict[str, np.ndarray]:
    low, mid, high = bins.spread(norm)
    loss_low, loss_mid, loss_high = bins.spread(losses)
    return {
        "norm": mid,
        "norm_low": low,
        "norm_high": high,
        "loss": loss_mid,
        "loss_low": loss_low,
        "loss_high": loss_high,
        "lr": bins.spread(np.linspace(1e-3, 1e-5, len(norm)))[1],
        "clip_rate": bins.share(coef < 1, np.ones(len(norm), dtype=bool)),
        "skipped": np.zeros(len(bins)),
        "spikes": np.zeros(len(bins)),
        "nonfinite": bins.count(~np.isfinite(norm)).astype(float),
    }


def _summary(names: tuple[str, ...], norm: np.ndarray, losses: np.ndarray) -> dict[str, Any]:
    steps, bad = len(norm), int((~np.isfinite(norm)).sum())
    first = {"step": int(steps * 0.7), "text": names[len(names) // 2]}
    return {
        "first": 1,
        "last": steps,
        "seconds": steps * 0.21,
        "total_norm": float(norm[-1]),
        "clip_rate": 0.31,
        "loss": None if np.isnan(losses[-1]) else float(losses[-1]),
        "skipped": 0,
        "nonfinite_steps": bad,
        "first_nonfinite": first if bad else None,
    }


def _matrix(
    rng: np.random.Generator, params: int, at: np.ndarray, level: float, share: float, broken: bool
) -> Matrix:
    bins = Bins.of(at, columns_for(params, RMS_CELLS if share == 1 else RATIO_CELLS))
    depth = np.linspace(0, 1, params)[:, None]
    time = np.linspace(0, 1, len(bins))[None, :]
    logs = (
        1.5 * np.exp(-6 * time) - depth * (0.5 + 1.5 * time) + 0.15 * rng.standard_normal((params, len(bins)))
    )
    logs += rng.choice([0.0, -0.8], size=(params, 1))
    values = (level * 10**logs).astype(np.float32)
    bad = np.zeros(values.shape, dtype=bool)
    if broken and params > 3 and len(bins) > 10:
        bad[params // 2 :, int(0.7 * len(bins))] = True
        values[params // 3, : len(bins) // 2] = 0
        values[params // 4, : len(bins) // 3] = np.nan
    return Matrix(bins.first, bins.last, values, bad)


def _histogram(rng: np.random.Generator, steps: int) -> Histogram:
    at = np.unique(np.linspace(1, steps, 40).astype(np.int64))
    exponents = np.arange(-40, 4)
    shares = np.exp(-(((exponents[None, :] + 14 + 4 * np.linspace(0, 1, len(at))[:, None]) / 4) ** 2))
    shares /= shares.sum(axis=1, keepdims=True)
    return Histogram(at, -40, shares, {"fp16": np.full(len(at), 0.01)}, "A sample of the elements.")


def record(
    folder: Path,
    names: tuple[str, ...] = ("a.weight", "a.bias", "b.0.weight", "b.1.weight"),
    steps: int = 40,
    loss: bool = True,
    bad_step: int | None = None,
    extras: bool = True,
    all_nan: bool = False,
    first: tuple[int, ...] | None = None,
) -> None:
    """Write a run through the monitor's own file writer; values from a formula that tests can repeat."""
    size = len(names)
    layout = Layout(names, np.full(size, 16), np.array(first or range(size)))
    writer = HistoryWriter(folder, {"norm_type": 2.0})
    rows: list[StepRow | WeightsRow | HistogramRow] = []
    for step in range(1, steps + 1):
        norm = norms_at(step, size)
        bad = all_nan or step == bad_step
        if bad:
            norm[size // 2 :] = np.nan
        total = float(np.sqrt((norm.astype(np.float64) ** 2).sum()))
        rows.append(
            StepRow(
                step=step,
                time=1.7e9 + 0.5 * step,
                layout=layout,
                norm=norm,
                max_abs=norm / 2,
                total_norm=total,
                nonfinite=3 * np.isnan(norm).astype(np.int64) if bad else None,
                loss=10.0 / step if loss else None,
                lr=(0.1 / step,),
                phase="before_clip",
                clip_coef=min(1.0, 2.0 / (total + 1e-6)) if total == total else float("nan"),
            )
        )
        if extras and step % 10 == 0:
            rows += _periodic(step, layout, norm)
    writer.write(rows)
    writer.close()


def _periodic(step: int, layout: Layout, norm: np.ndarray) -> list[WeightsRow | HistogramRow]:
    size = len(norm)
    counts = np.zeros((size, len(EXPONENTS)), dtype=np.int64)
    counts[:, EXPONENTS.index(-9)] = 3
    counts[:, EXPONENTS.index(-8)] = 1
    return [
        WeightsRow(step, layout, True, np.ones(size, np.float32), norm * 1e-3),
        HistogramRow(step, layout, counts, np.full((size, len(FORMATS)), 0.25, np.float32)),
    ]


def norms_at(step: int, size: int) -> np.ndarray:
    return (np.arange(1, size + 1) * (1 + 10.0 / step) * 0.1).astype(np.float32)
