"""`read_evidence`: read a History for a diagnosis, all of a short run and some windows of a long one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradkern.diagnosis.evidence import RunEvidence
from gradkern.history import format
from gradkern.history.format import EXPONENTS
from gradkern.history.named import OVER_TIME

if TYPE_CHECKING:
    from gradkern.history import History

#: Numbers of one [R, N] array. At 2,000 parameters these are 1,000 rows; the six arrays then take 80 MB.
MOST_CELLS = 2_000_000
#: Fewest and most rows of which all parameters are read.
LEAST_ROWS, MOST_ROWS = 256, 2048
#: The most steps with periodic statistics that are read, evenly spread, with more of the first ones.
MOST_PERIODIC = 256
MOST_HISTOGRAMS = 16


def read_evidence(history: History) -> RunEvidence:
    """Read the data that rules need.

    Args:
        history: it is read, not refreshed.

    Notes:
        What is read for each parameter is bounded whatever the length of the run; what is one number a
        step (loss, norm, …) is read whole.
    """
    rows = choose_rows(len(history), len(history.names), _moments(history))
    columns = _read_rows(history, rows)
    steps, weights, ratios = _updates(history)
    hist_steps, histogram = _histograms(history)
    meta = history.meta
    return RunEvidence(
        names=history.names,
        numel=history.numel,
        steps=history.steps,
        loss=history.loss,
        has_loss=history.has_loss,
        total_norm=history.total_norm,
        clip_coef=np.where(history.has_coef, history.clip_coef, np.nan),
        threshold=history.max_norm,
        skipped=history.skipped,
        lr=history.lr,
        loss_scale=history.loss_scale,
        rows=rows,
        update_steps=steps,
        weight_norm=weights,
        update_ratio=ratios,
        histogram_steps=hist_steps,
        histogram=histogram,
        histogram_exponents=history.histogram_exponents,
        ever_nonzero=history.ever_nonzero,
        params=history.params,
        facts=history.facts,
        over_time=_over_time(history),
        watches_steps=bool(meta.get("optimizer") and meta.get("update_every")),
        **columns,
    )


def choose_rows(count: int, width: int, moments: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose the rows in which every parameter is read.

    Args:
        count: T.
        width: N.
        moments: rows that matter (a first NaN, spikes): the eight before and after each are taken too.

    Returns:
        [R] ascending: all if they fit, else a quarter at the beginning, a quarter at the end and windows
        of 16 in between.
    """
    budget = int(np.clip(MOST_CELLS // max(width, 1), LEAST_ROWS, MOST_ROWS))
    if count <= budget:
        return np.arange(count)
    quarter = budget // 4
    starts = np.linspace(quarter, count - quarter - 16, max(budget // 32, 1)).astype(np.int64)
    pieces = [np.arange(quarter), np.arange(count - quarter, count)]
    pieces += [np.arange(start, start + 16) for start in starts]
    pieces += [np.arange(max(m - 8, 0), min(m + 9, count)) for m in moments.tolist()]
    return np.unique(np.concatenate(pieces))


def _moments(history: History) -> NDArray[np.int64]:
    """The first rows whose norm is not finite, and those with the largest norms."""
    norm = history.total_norm
    bad = np.flatnonzero(~np.isfinite(norm))[:2]
    top = np.argsort(np.where(np.isfinite(norm), norm, -1.0))[-6:]
    return np.unique(np.concatenate([bad, top]))


def _read_rows(history: History, rows: NDArray[np.int64]) -> dict[str, Any]:
    """The [R, N] columns of those rows, read in runs of consecutive ones."""
    names = ("rms", "max_abs", "has_grad", "nonfinite", "zeros")
    found: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    shape = (0, len(history.names))
    for part in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1) if len(rows) else []:
        window = history.window(int(part[0]), int(part[-1]) + 1)
        zeros = window.zeros
        zeros = np.full((len(part), shape[1]), -1, dtype=np.int64) if zeros is None else zeros
        values = (window.rms, window.max_abs, window.has_grad, window.nonfinite, zeros)
        for name, value in zip(names, values):
            found[name].append(value)
    kinds = dict(zip(names, (np.float32, np.float32, np.bool_, np.int64, np.int64)))
    return {name: np.concatenate(v) if v else np.zeros(shape, kinds[name]) for name, v in found.items()}


def _updates(history: History) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]]:
    """(steps [U], weight norms [U, N], update ratios [U, N]) of the steps with weights that are read."""
    ids, steps = history.live_rows("weights")
    few = _few(len(ids), _fitting(MOST_PERIODIC, len(history.names)))
    norms = np.full((len(few), len(history.names)), np.nan, dtype=np.float32)
    ratios = norms.copy()
    found = history.read_rows("weights", "weight_norm, ratio", [ids[at] for at in few])
    for i, (layout, norm, ratio) in enumerate(found):
        at = layout.columns
        norms[i, at] = format.decode(norm, len(at), "weights")
        ratios[i, at] = format.decode(ratio, len(at), "weights")
    return steps[few], norms, ratios


def _histograms(history: History) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(steps [V], counts [V, N, B]) of the histograms that are read."""
    ids, steps = history.live_rows("hists")
    few = _few(len(ids), _fitting(MOST_HISTOGRAMS, len(history.names) * len(EXPONENTS)))
    counts = np.zeros((len(few), len(history.names), len(EXPONENTS)), dtype=np.int64)
    found = history.read_rows("hists", "counts", [ids[at] for at in few])
    for i, (layout, blob) in enumerate(found):
        flat = format.decode_counts(blob, len(layout.columns) * len(EXPONENTS), "hists")
        counts[i, layout.columns] = flat.reshape(len(layout.columns), len(EXPONENTS))
    return steps[few], counts


def _over_time(history: History) -> dict[str, NDArray[Any]]:
    """For each module that `GradientOverTime` watched, [T, P]."""
    found: dict[str, dict[int, NDArray[Any]]] = {}
    for name, values in history.extra.items():
        module, _, position = name.removeprefix(OVER_TIME).rpartition("/")
        if name.startswith(OVER_TIME) and position.isdecimal():
            found.setdefault(module, {})[int(position)] = values
    return {module: np.stack([by[i] for i in sorted(by)], axis=1) for module, by in found.items()}


def _fitting(most: int, width: int) -> int:
    """How many rows of `width` numbers are read: `most`, or as many as fit `MOST_CELLS`; at least one."""
    return max(1, min(most, MOST_CELLS // max(width, 1)))


def _few(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` of `count` positions: the first (up to 16) and others evenly spread up to the last."""
    if count <= most:
        return np.arange(count)
    first = min(16, most // 2)
    spread = np.linspace(first, count - 1, most - first).astype(np.int64)
    return np.unique(np.concatenate([np.arange(first), spread]))
