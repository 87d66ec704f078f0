"""Verdicts against labels: hits, layers, latency, and their intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.diagnosis.labels import Label
from benchmarks.diagnosis.trace import Trace
from gradkern import History
from gradkern.diagnosis import Finding, RunEvidence, diagnose
from gradkern.diagnosis.load import read_evidence

__all__ = ["clopper_pearson", "evidence_of", "hit", "latency", "prefix", "right_layers"]

#: Prefixes of a run that are diagnosed, as fractions of its length.
PREFIXES = tuple(i / 20 for i in range(1, 21))
#: The fraction of the named parameters that has to be at fault, and of those at fault that has to be named.
PRECISION, COVERAGE = 0.8, 0.5


def evidence_of(run: Path) -> RunEvidence:
    with History.open(run) as history:
        return read_evidence(history)


def prefix(evidence: RunEvidence, count: int) -> RunEvidence:
    """What was known after the first `count` steps."""
    last = int(evidence.steps[count - 1])
    rows = evidence.rows < count
    looks = evidence.update_steps <= last
    histograms = evidence.histogram_steps <= last
    cut: dict[str, object] = {name: getattr(evidence, name)[:count] for name in _BY_STEP}
    cut |= {name: getattr(evidence, name)[rows] for name in _BY_ROW}
    cut |= {name: getattr(evidence, name)[looks] for name in _BY_LOOK}
    cut |= {name: getattr(evidence, name)[histograms] for name in ("histogram_steps", "histogram")}
    cut["ever_nonzero"] = np.full(len(evidence.names), np.nan)
    return dataclasses.replace(evidence, **cut)  # type: ignore[arg-type]


_BY_STEP = (
    "steps",
    "loss",
    "has_loss",
    "total_norm",
    "clip_coef",
    "threshold",
    "skipped",
    "lr",
    "loss_scale",
)
_BY_ROW = ("rows", "rms", "max_abs", "has_grad", "nonfinite", "zeros")
_BY_LOOK = ("update_steps", "weight_norm", "update_ratio")


def hit(found: Sequence[Finding], label: Label) -> bool:
    """Whether the headline is a kind that is true of the run; for "info" kinds, whether one is found."""
    if label.kind in ("never_clipping", "loss_not_decreasing"):
        return any(f.kind == label.kind for f in found)
    return bool(found) and found[0].is_alarm and found[0].kind in label.kinds


def right_layers(finding: Finding, label: Label, trace: Trace) -> bool:
    """Whether a finding names what is at fault, and little else."""
    needed, allowed, named = label.needed(trace), label.allowed(trace), set(finding.layers)
    if not named:
        return not needed
    precise = len(named & allowed) >= PRECISION * len(named)
    return precise and len(named & needed) >= COVERAGE * len(needed)


def latency(evidence: RunEvidence, label: Label, onset: int) -> float:
    """The fraction of the run between the onset and the first prefix with the right verdict; inf if none has
    it."""
    count = len(evidence.steps)
    for part in PREFIXES:
        steps = max(int(part * count), 2)
        if steps >= onset and hit(diagnose(prefix(evidence, steps)), label):
            return (steps - onset) / count
    return float("inf")


def clopper_pearson(hits: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a rate (Clopper and Pearson 1934)."""
    from scipy.stats import beta  # on first use: it takes a second

    tail = (1 - level) / 2
    low = float(beta.ppf(tail, hits, count - hits + 1)) if hits else 0.0
    return low, float(beta.ppf(1 - tail, hits + 1, count - hits)) if hits < count else 1.0
