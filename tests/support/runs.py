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
    names, shapes = [], []
    for i in range(layers):
        names.append(f"{2 * i}.weight")
        shapes.append([WIDTH, WIDTH])
        if bias:
            names.append(f"{2 * i}.bias")
            shapes.append([WIDTH])
    numel = np.array([int(np.prod(s)) for s in shapes])
    count = len(names)
    noise = np.exp(0.2 * random.standard_normal((steps, count)))
    values = (rms * noise).astype(np.float32)
    if bias:
        values[:, 1::2] *= 2  # rms(gW) / rms(gb) = 0.5: the rms of each layer's input
    looks = np.array([s for s in (1, 2, 4, 8, 16, 32, 64, 100, 128, 200) if s <= steps])
    falling = 0.1 + 2.2 * np.exp(-np.arange(steps) / (steps / 5)) + 0.02 * random.standard_normal(steps)
    modules = {str(2 * i): kind for i in range(layers)}
    modules |= {str(2 * i + 1): activation for i in range(layers - 1)}
    zeros = np.full((steps, count), -1)
    zeros[:, [i for i, s in enumerate(shapes) if len(s) == 1]] = 0
    return RunEvidence(
        names=tuple(names),
        numel=numel,
        steps=np.arange(1, steps + 1),
        loss=falling if loss is None else np.broadcast_to(np.asarray(loss, dtype=float), steps).copy(),
        has_loss=np.ones(steps, dtype=bool),
        total_norm=np.sqrt((values.astype(float) ** 2 * numel).sum(axis=1)),
        clip_coef=np.full(steps, np.nan),
        threshold=np.full(steps, np.nan),
        skipped=np.zeros(steps, dtype=bool),
        lr=np.full(steps, lr),
        loss_scale=np.full(steps, np.nan),
        rows=np.arange(steps),
        rms=values,
        max_abs=3.5 * values,
        has_grad=np.ones((steps, count), dtype=bool),
        nonfinite=np.zeros((steps, count), dtype=np.int64),
        zeros=zeros,
        update_steps=looks,
        weight_norm=np.tile(np.sqrt(numel / WIDTH) * np.linspace(1, 1.2, len(looks))[:, None], (1, 1)).astype(
            np.float32
        ),
        update_ratio=np.full((len(looks), count), 3e-3, dtype=np.float32),
        histogram_steps=np.zeros(0, dtype=np.int64),
        histogram=np.zeros((0, count, 4), dtype=np.int64),
        histogram_exponents=np.array([-30, -20, -14, -4]),
        ever_nonzero=np.ones(count, dtype=np.float32),
        params={
            n: {"shape": s, "dtype": "float32", "kind": kind, "trainable": True}
            for n, s in zip(names, shapes)
        },
        facts={"modules": modules, "graph": {}, "optimizers": []},
    )


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
    """Gradients that change by so many decades from the input to the output."""
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
