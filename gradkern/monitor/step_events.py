"""`StepEvents`: skipped steps, spikes and changed limits as events of the run. Runs on the writing thread."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gradkern.history.rows import EventRow, StepRow
from gradkern.monitor.event_series import EventSeries

#: Parameters that an event names at most.
MOST_NAMES = 8


@dataclass(frozen=True)
class PartRow:
    """The row of a model's step, and `GradStats.policy` of what decided on it."""

    part: str
    row: StepRow
    policy: Mapping[str, Any] | None


class _Decided(NamedTuple):
    """What a policy decided on all gradients of a model, or on a named group of them."""

    where: dict[str, str]
    """The part and the group, as an event names them."""
    settings: Mapping[str, Any]
    norm: float
    factor: float | None
    threshold: float | None

    @property
    def policy(self) -> str:
        return str(self.settings.get("class", ""))


class StepEvents:
    """Finds what happened in each step."""

    def __init__(self) -> None:
        self._series = EventSeries()
        self._limits: dict[tuple[str, ...], float] = {}

    def of(self, rows: list[PartRow]) -> list[EventRow]:
        """The events of a step, given the rows of its parts."""
        self._series.next_step()
        found: list[EventRow] = []
        for row in rows:
            decided = list(_decisions(row))
            happened = [*_skips(row, decided), *_spikes(decided), *self._changes(decided)]
            found += [self._series.add(row.row.step, row.row.time, kind, data) for kind, data in happened]
        return found

    def _changes(self, decided: list[_Decided]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Limits that the user has changed. Limits that a policy adapts are in the threshold of each step."""
        for one in decided:
            limit = _limit(one)
            if limit is None:
                continue
            key = tuple(one.where.values())
            before = self._limits.setdefault(key, limit)
            self._limits[key] = limit
            if limit != before:
                yield "threshold", {**one.where, "before": before, "after": limit}


def _decisions(given: PartRow) -> Iterator[_Decided]:
    row, policy = given.row, given.policy or {}
    part = {"part": given.part} if given.part else {}
    groups = policy.get("groups")
    if not isinstance(groups, Mapping):
        yield _Decided(part, policy, row.total_norm, row.clip_coef, row.threshold)
        return
    for name, settings in groups.items():
        if name in row.groups:
            norm, *others = row.groups[name]
            factor, threshold = (None if math.isnan(number) else number for number in others)
            yield _Decided({**part, "group": name}, settings, norm, factor, threshold)


def _skips(given: PartRow, decided: list[_Decided]) -> Iterator[tuple[str, dict[str, Any]]]:
    row = given.row
    if not row.skipped:
        return
    part = {"part": given.part} if given.part else {}
    if row.nonfinite is not None or not math.isfinite(row.total_norm):
        bad = [] if row.nonfinite is None else np.flatnonzero(row.nonfinite)[:MOST_NAMES].tolist()
        reason = "nonfinite" if row.inv_scale == 1.0 else "scaler"
        yield "skip", {"reason": reason, **part, "parameters": [row.layout.names[i] for i in bad]}
        return
    outliers = [one for one in decided if one.policy == "SkipOutliers" and _exceeds(one)]
    for one in outliers:
        yield "skip", {"reason": "outlier", **one.where, "norm": one.norm, "limit": one.threshold}
    if not outliers:
        yield "skip", {"reason": "policy", **part, "norm": row.total_norm}


def _spikes(decided: list[_Decided]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Norms that ZClip regards as outliers: its threshold is then below its `max_norm`."""
    for one in decided:
        limit = one.threshold
        if one.policy == "ZClip" and _exceeds(one) and limit != one.settings.get("max_norm", math.inf):
            yield "spike", {**one.where, "norm": one.norm, "limit": limit}


def _exceeds(one: _Decided) -> bool:
    return one.threshold is not None and one.norm > one.threshold


def _limit(one: _Decided) -> float | None:
    """The limit that the user set; None where it is not known."""
    if not one.policy:  # a clip by torch's function, or none
        return one.threshold
    if one.policy == "GlobalNorm":
        return math.inf if one.threshold is None else one.threshold
    limit = one.settings.get("max_norm", math.inf)
    return float(limit) if isinstance(limit, (int, float)) else None
