"""From a History to what a report shows of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradkern.monitor import store
from gradkern.monitor.history import History
from gradkern.report.bins import F64, I64, Bins
from gradkern.report.data import (
    CURVE_BINS,
    Clipping,
    Matrix,
    Run,
    Source,
    columns_for,
)
from gradkern.report.sparse import ratio_note, read_histogram, read_ratios

_PHASES = {"before_clip": "before clipping", "measured": "as measured", "after_clip": "after clipping"}


def load(source: Source) -> Run:
    """A run, downsampled. Reads aggregates, never every value of every step.

    Raises:
        HistoryError: the folder holds no run that can be read; names the file.
    """
    if isinstance(source, Run):
        return source
    if isinstance(source, History):
        return _from_history(source)
    with History.open(source) as history:
        return _from_history(history)


def _from_history(history: History) -> Run:
    with store.reading(history.path, "report"):
        return _read(history)


def _read(history: History) -> Run:
    steps, coef = history.steps, np.where(history.has_coef, history.clip_coef, np.nan)
    bins = Bins.of(steps, CURVE_BINS)
    matrices = {"rms": _rms(history)}
    ratios = read_ratios(history)
    if ratios is not None:
        matrices["ratio"] = ratios
    thresholds = history.max_norm[np.isfinite(history.max_norm)]
    folder = history.path.resolve().parent
    return Run(
        title=folder.name,
        names=history.names,
        numel=_weights(history),
        records=len(history),
        bins=bins,
        series=_series(history, bins),
        rates=Clipping.of(steps, coef, history.clipped),
        matrices=matrices,
        summary=_summary(history),
        max_norm=float(thresholds[-1]) if len(thresholds) else None,
        ratio_note=ratio_note(history),
        histogram=read_histogram(history),
        phase=phase_in_words(history.phase, history.inv_scale),
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
    count, bad = len(history), ~np.isfinite(history.total_norm)
    if not count:
        return {"first": 0, "last": 0, "seconds": 0.0, "total_norm": None, "clip_rate": None, "loss": None,
                "skipped": 0, "nonfinite_steps": 0, "first_nonfinite": None}  # fmt: skip
    losses = history.loss[history.has_loss]
    clips = history.clipped[history.has_coef]
    return {
        "first": int(history.steps[0]),
        "last": int(history.steps[-1]),
        "seconds": float(history.time[-1] - history.time[0]),
        "total_norm": float(history.total_norm[-1]),
        "clip_rate": float(clips.mean()) if len(clips) else None,
        "loss": float(losses[-1]) if len(losses) else None,
        "skipped": int(history.skipped.sum()),
        "nonfinite_steps": int(bad.sum()),
        "first_nonfinite": _offender(history, int(np.argmax(bad))) if bad.any() else None,
    }


def _offender(history: History, row: int) -> dict[str, Any]:
    step, name, more = first_offender(history, row)
    return {"step": step, "text": name if not more else f"{name} and {more} more"}


def first_offender(history: History, row: int) -> tuple[int, str, int]:
    """(step, name, how many more) of the parameters with inf or NaN in one row of a history."""
    rows = np.flatnonzero(history.window(row, row + 1).nonfinite[0])
    step = int(history.steps[row])
    return (step, history.names[rows[0]], len(rows) - 1) if len(rows) else (step, "only the total", 0)


def phase_in_words(phases: NDArray[np.str_], inv_scale: F64) -> str:
    """What norms are of; where it changed, that too."""
    if not len(phases):
        return _PHASES["measured"]
    words = ", then ".join(_PHASES[str(phase)] for phase in _in_order(phases))
    return words + (", loss scale taken out" if (inv_scale != 1).any() else "")


def _in_order(values: NDArray[np.str_]) -> NDArray[np.str_]:
    found, first = np.unique(values, return_index=True)
    return found[np.argsort(first)]


def _rms(history: History) -> Matrix:
    if not len(history):
        return _no_columns(len(history.names))
    summary = history.summary(columns_for(len(history.names)))
    return Matrix(summary.step0, summary.step1, summary.rms.T.astype(np.float32), summary.nonfinite.T > 0)


def _no_columns(rows: int) -> Matrix:
    empty = np.zeros(0, dtype=np.int64)
    return Matrix(empty, empty, np.zeros((rows, 0), np.float32), np.zeros((rows, 0), bool))


def _weights(history: History) -> I64:
    """Elements of each parameter, 0 for one that is another under a second name."""
    numel = history.numel.copy()
    numel[list(history.repeated)] = 0
    return numel
