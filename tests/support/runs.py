"""Synthetic evidence: a healthy run of a few layers, and functions that make it faulty."""

from __future__ import annotations

import dataclasses

import numpy as np

from gradkern.diagnosis import RunEvidence

STEPS, WIDTH = 200, 32


def healthy(
    layers=6,
    steps=STEPS,
    *,
    kind="Linear",
    activation="ReLU",
    bias=True,
    seed=0,
    loss=None,
    rms=1e-2,
    lr=1e-3,
):
    """A stack of Linear layers ("0", "2", …) whose gradients are level and whose loss falls."""
    random = np.random.default_rng(seed)
    shapes = {}
    for i in range(layers):
        shapes[f"{2 * i}.weight"] = [WIDTH, WIDTH]
        if bias:
            shapes[f"{2 * i}.bias"] = [WIDTH]
    numel = np.array([int(np.prod(shape)) for shape in shapes.values()])
    values = (rms * np.exp(0.2 * random.standard_normal((steps, len(shapes))))).astype(np.float32)
    if bias:
        values[:, 1::2] *= 2  # rms(gW) / rms(gb) = 0.5: the rms of each layer's input
    falling = 0.1 + 2.2 * np.exp(-np.arange(steps) / (steps / 5)) + 0.02 * random.standard_normal(steps)
    modules = {"": "Sequential"} | {str(i): activation if i % 2 else kind for i in range(2 * layers - 1)}
    details = {"dtype": "float32", "kind": kind, "trainable": True}
    return RunEvidence(
        **_plain(steps, [len(shape) == 1 for shape in shapes.values()]),
        **_weights(steps, numel),
        names=tuple(shapes),
        numel=numel,
        loss=falling if loss is None else np.broadcast_to(np.asarray(loss, dtype=float), steps).copy(),
        total_norm=np.sqrt((values.astype(float) ** 2 * numel).sum(axis=1)),
        lr=np.full(steps, lr),
        rms=values,
        max_abs=3.5 * values,
        params={name: {"shape": shape, **details} for name, shape in shapes.items()},
        facts={"modules": modules, "graph": {}, "optimizers": []},
    )


def _plain(steps, counted):
    """Columns of a run in which nothing happens; zeros are counted for some parameters."""
    count = len(counted)
    zeros = np.full((steps, count), -1)
    zeros[:, counted] = 0
    return {
        "steps": np.arange(1, steps + 1),
        "has_loss": np.ones(steps, dtype=bool),
        "clip_coef": np.full(steps, np.nan),
        "threshold": np.full(steps, np.nan),
        "skipped": np.zeros(steps, dtype=bool),
        "loss_scale": np.full(steps, np.nan),
        "rows": np.arange(steps),
        "has_grad": np.ones((steps, count), dtype=bool),
        "nonfinite": np.zeros((steps, count), dtype=np.int64),
        "zeros": zeros,
        "histogram_steps": np.zeros(0, dtype=np.int64),
        "histogram": np.zeros((0, count, 4), dtype=np.int64),
        "histogram_exponents": np.array([-30, -20, -14, -4]),
        "ever_nonzero": np.ones(count, dtype=np.float32),
    }


def _weights(steps, numel):
    """Weights that grow by a fifth, and steps that move them by 0.3 %."""
    at = np.array([s for s in (1, 2, 4, 8, 16, 32, 64, 100, 128, 200) if s <= steps])
    norms = np.sqrt(numel / WIDTH) * np.linspace(1, 1.2, len(at))[:, None]
    ratios = np.full((len(at), len(numel)), 3e-3, dtype=np.float32)
    return {"update_steps": at, "weight_norm": norms.astype(np.float32), "update_ratio": ratios}


def changed(evidence, **fields):
    """A copy with some fields replaced; the total norm follows from the gradients."""
    if "rms" in fields:
        fields.setdefault("max_abs", 3.5 * fields["rms"])
    made = dataclasses.replace(evidence, **fields)
    if "rms" in fields and "total_norm" not in fields:
        known = np.nan_to_num(made.rms.astype(float), nan=0.0, posinf=0.0)
        total = np.sqrt((known**2 * made.numel).sum(axis=1))
        total[(made.nonfinite > 0).any(axis=1)] = np.nan
        made = dataclasses.replace(made, total_norm=total)
    return made


def sloped(evidence, decades, *, biases=None):
    """Gradients that change by a number of decades from the input to the output."""
    rms = evidence.rms.astype(float)
    depth = np.linspace(0, 1, (rms.shape[1] + 1) // 2)
    rms[:, 0::2] *= 10.0 ** (decades * (depth - 1))
    rms[:, 1::2] *= 10.0 ** ((decades if biases is None else biases) * (depth - 1))
    return changed(evidence, rms=rms.astype(np.float32))


def flat_loss(evidence, value=2.3):
    random = np.random.default_rng(1)
    return changed(evidence, loss=value + 0.02 * random.standard_normal(len(evidence.steps)))


def slow(evidence):
    """Its loss falls, but not by as much as that of a run that learns well."""
    return changed(evidence, loss=evidence.loss + 1.0)
