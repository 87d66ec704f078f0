"""What happened in a run, and its groups: a bounded part for the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from gradkern.diagnosis import Notice, notice_of
from gradkern.history.facade import History
from gradkern.report.bins import F64, I64, Bins
from gradkern.report.data import EVENTS_OF_KIND, MOST_EVENTS, MOST_GROUPS


def notices_of(history: History) -> list[Notice]:
    """Every event but the findings, which the page makes anew."""
    return [notice_of(e.step, e.kind, e.data) for e in history.events if e.kind != "finding"]


def some_of(notices: Sequence[Notice]) -> tuple[Notice, ...]:
    """The first and the last of each kind, by step."""
    by_kind: dict[str, list[Notice]] = {}
    for notice in notices:
        by_kind.setdefault(notice.kind, []).append(notice)
    kept = [notice for found in by_kind.values() for notice in _ends(found)]
    return tuple(sorted(kept[:MOST_EVENTS], key=lambda notice: notice.step))


def _ends(notices: list[Notice]) -> list[Notice]:
    if len(notices) <= 2 * EVENTS_OF_KIND:
        return notices
    return [*notices[:EVENTS_OF_KIND], *notices[-EVENTS_OF_KIND:]]


def counted(notices: Sequence[Notice]) -> dict[str, int]:
    """How often each kind happened, the most frequent first."""
    found: Counter[str] = Counter()
    for notice in notices:
        found[notice.kind] += notice.times
    return dict(found.most_common(MOST_EVENTS))


def spikes_in(notices: Sequence[Notice], steps: I64, bins: Bins) -> F64:
    """Of each bin, the number of steps at which spikes begin."""
    at = np.searchsorted(steps, [notice.step for notice in notices if notice.kind == "spike"])
    flags = np.bincount(at[at < len(steps)], minlength=len(steps)) > 0
    return bins.count(flags).astype(np.float64)


def norms_of_groups(history: History, bins: Bins) -> dict[str, F64]:
    """The mean total norm of each group or model in each bin, of those with the largest norms."""
    means = {name: bins.spread(group.total_norm)[1] for name, group in history.groups.items()}
    size = {name: np.nanmax(mean, initial=-np.inf) for name, mean in means.items()}
    shown = sorted(means, key=lambda name: -size[name])[:MOST_GROUPS]
    return {name: means[name] for name in means if name in shown}
