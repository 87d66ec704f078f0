"""Load a run for a report."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradkern.diagnosis import diagnose
from gradkern.history import format
from gradkern.history.facade import History
from gradkern.history.words import first_nonfinite_of, phase_in_words
from gradkern.report.bins import F64, I64, Bins
from gradkern.report.data import (
    CURVE_BINS,
    Clipping,
    Matrix,
    ReportData,
    Source,
    columns_for,
)
from gradkern.report.events import (
    counted,
    events_of,
    norms_of_groups,
    notices_of,
    own_numbers,
    spikes_in,
)
from gradkern.report.periodic import ratio_note, read_histogram, read_ratios


def load(source: Source) -> ReportData:
    """Load a downsampled run. Reads aggregates, never every value of every step.

    Raises:
        HistoryError: the folder has no run that can be read. The message names the file.
    """
    if isinstance(source, ReportData):
        return source
    if isinstance(source, History):
        return _from_history(source)
    with History.open(source) as history:
        return _from_history(history)


def _from_history(history: History) -> ReportData:
    with format.reading(history.path, "report"):
        return _read(history)


def _read(history: History) -> ReportData:
    steps, coef = history.steps, np.where(history.has_coef, history.clip_coef, np.nan)
    bins = Bins.of(steps, CURVE_BINS)
    matrices = {"rms": _rms(history)}
    ratios = read_ratios(history)
    if ratios is not None:
        matrices["ratio"] = ratios
    thresholds = history.max_norm[np.isfinite(history.max_norm)]
    folder = history.path.resolve().parent
    events = events_of(history)
    return ReportData(
        title=folder.name,
        names=history.names,
        numel=_weights(history),
        records=len(history),
        bins=bins,
        series=_series(history, bins) | {"spikes": spikes_in(events, steps, bins)},
        rates=Clipping.of(steps, coef, history.clipped),
        matrices=matrices,
        summary=_summary(history),
        max_norm=float(thresholds[-1]) if len(thresholds) else None,
        ratio_note=ratio_note(history),
        histogram=read_histogram(history),
        findings=tuple(finding.to_json() for finding in diagnose(history)),
        events=notices_of(events),
        happened=counted(events),
        groups=norms_of_groups(history, bins),
        own=own_numbers(history, bins),
        phase=phase_in_words(history),
        folder=str(folder),
    )


def _series(history: History, bins: Bins) -> dict[str, F64]:
    low, mid, high = bins.spread(history.total_norm)
    loss_low, loss_mid, loss_high = bins.spread(history.loss)
    return {
        "norm": mid,
        "norm_low": low,
        "norm_high": high,
        "loss": loss_mid,
        "loss_low": loss_low,
        "loss_high": loss_high,
        "lr": bins.spread(history.lr)[1],
        "clip_rate": bins.share(history.clipped, history.has_coef),
        "skipped": bins.count(history.skipped).astype(np.float64),
        "nonfinite": bins.count(~np.isfinite(history.total_norm)).astype(np.float64),
    }


def _summary(history: History) -> dict[str, Any]:
    if not len(history):
        return {"first": 0, "last": 0, "seconds": 0.0, "total_norm": None, "clip_rate": None, "loss": None,
                "skipped": 0, "nonfinite_steps": 0, "first_nonfinite": None}  # fmt: skip
    losses = history.loss[history.has_loss]
    clips = history.clipped[history.has_coef]
    first_nonfinite = first_nonfinite_of(history)
    return {
        "first": int(history.steps[0]),
        "last": int(history.steps[-1]),
        "seconds": float(history.time[-1] - history.time[0]),
        "total_norm": float(history.total_norm[-1]),
        "clip_rate": float(clips.mean()) if len(clips) else None,
        "loss": float(losses[-1]) if len(losses) else None,
        "skipped": int(history.skipped.sum()),
        "nonfinite_steps": int((~np.isfinite(history.total_norm)).sum()),
        "first_nonfinite": first_nonfinite and {"step": first_nonfinite.step, "text": str(first_nonfinite)},
    }


def _rms(history: History) -> Matrix:
    if not len(history):
        return _no_columns(len(history.names))
    summary = history.summary(columns_for(len(history.names)))
    return Matrix(summary.step0, summary.step1, summary.rms.T.astype(np.float32), summary.nonfinite.T > 0)


def _no_columns(rows: int) -> Matrix:
    empty = np.zeros(0, dtype=np.int64)
    return Matrix(empty, empty, np.zeros((rows, 0), np.float32), np.zeros((rows, 0), bool))


def _weights(history: History) -> I64:
    """The number of elements of each parameter; 0 for a second name of a shared parameter."""
    numel = history.numel.copy()
    numel[list(history.repeated)] = 0
    return numel
