"""`StepEvents`: skipped steps, spikes and changed limits as events of the run. Runs on the writing thread."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gradkern.history.rows import EventRow
from gradkern.monitor.events.decided import MOST_NAMES, Decided, PartRow
from gradkern.monitor.events.series import EventSeries
from gradkern.monitor.events.spikes import Spikes

#: Settings of policies that determine a threshold, besides `max_norm`.
_SETTINGS = ("clip_value", "clip_factor", "percentile", "z_thresh", "sigma", "lambda_abs", "lambda_rel")
#: A limit of a `Schedule` has changed if it does so by this factor from one step to the next. The many small
#: changes of a warm-up are in the threshold of each step only.
JUMP = 1.1

Happened = tuple[str, dict[str, Any]]


class StepEvents:
    """Finds what happened in each step."""

    def __init__(self) -> None:
        self._series, self._spikes = EventSeries(), Spikes()
        self._limits: dict[tuple[str, ...], float] = {}

    def of(self, rows: list[PartRow]) -> list[EventRow]:
        """The events of a step, given the rows of its parts."""
        self._series.next_step()
        found: list[EventRow] = []
        for given in rows:
            decided = list(given.decisions())
            happened = [
                *_skips(given, decided),
                *(("spike", spike) for spike in self._spikes.of(given, decided)),
                *self._changes(decided),
            ]
            found += [self._series.add(given.row.step, given.row.time, kind, data) for kind, data in happened]
        return found

    def _changes(self, decided: list[Decided]) -> Iterator[Happened]:
        """Limits that the user has changed. Limits that a policy adapts are in the threshold of each step."""
        for one in decided:
            for setting, limit in _limits(one).items():
                key = (*one.where.values(), setting)
                before = self._limits.setdefault(key, limit)
                self._limits[key] = limit
                if limit == before or (one.policy == "Schedule" and not _jumps(before, limit)):
                    continue
                named = {} if setting == "max_norm" else {"setting": setting}
                yield "threshold", {**one.where, **named, "before": before, "after": limit}


def _skips(given: PartRow, decided: list[Decided]) -> Iterator[Happened]:
    row = given.row
    if not row.skipped:
        return
    if row.nonfinite is not None or not math.isfinite(row.total_norm):
        bad = [] if row.nonfinite is None else np.flatnonzero(row.nonfinite)[:MOST_NAMES].tolist()
        reason = "nonfinite" if row.inv_scale == 1.0 else "scaler"
        yield "skip", {"reason": reason, **given.where, "parameters": [row.layout.names[i] for i in bad]}
        return
    outliers = [one for one in decided if one.policy == "SkipOutliers" and one.exceeds]
    for one in outliers:
        yield "skip", {"reason": "outlier", **one.where, "norm": one.norm, "limit": one.threshold}
    if not outliers:
        yield "skip", {"reason": "policy", **given.where, "norm": row.total_norm}


def _limits(one: Decided) -> dict[str, float]:
    """What the user set, by name: "max_norm" also for the limit of a `Schedule` or of torch's function."""
    found = {name: float(one.settings[name]) for name in _SETTINGS if _is_number(one.settings.get(name))}
    if one.policy in ("", "Schedule"):  # "": a clip by torch's function, or none
        return found if one.threshold is None else {**found, "max_norm": one.threshold}
    if one.policy == "GlobalNorm":
        return {**found, "max_norm": math.inf if one.threshold is None else one.threshold}
    limit = one.settings.get("max_norm", math.inf)  # settings that are inf are left out
    return {**found, "max_norm": float(limit)} if _is_number(limit) else found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _jumps(before: float, after: float) -> bool:
    return not before / JUMP < after < before * JUMP
