"""Events, groups and extra numbers of a run, reduced to a bounded amount for the page."""

from __future__ import annotations

from collections import Counter

import numpy as np

from gradkern.diagnosis import Notice, notice_of
from gradkern.history.facade import History
from gradkern.history.named import OVER_TIME
from gradkern.history.noted import Event
from gradkern.report.bins import F64, I64, Bins
from gradkern.report.data import EVENTS_OF_KIND, MOST_EVENTS, MOST_GROUPS, MOST_OWN


def events_of(history: History) -> list[Event]:
    """All events without findings, which are computed again for the page."""
    return [event for event in history.events if event.kind != "finding"]


def notices_of(events: list[Event]) -> tuple[Notice, ...]:
    """The first and the last of each kind, by step."""
    by_kind: dict[str, list[Event]] = {}
    for event in events:
        by_kind.setdefault(event.kind, []).append(event)
    kept = [
        event
        for found in by_kind.values()
        for event in (found if len(found) <= 2 * EVENTS_OF_KIND else _ends(found))
    ]
    kept = sorted(kept[:MOST_EVENTS], key=lambda event: event.step)
    return tuple(notice_of(event.step, event.kind, event.data) for event in kept)


def _ends(events: list[Event]) -> list[Event]:
    return [*events[:EVENTS_OF_KIND], *events[-EVENTS_OF_KIND:]]


def counted(events: list[Event]) -> dict[str, int]:
    """The number of events of each kind, the most frequent first."""
    counts: Counter[str] = Counter()
    for event in events:
        counts[event.kind] += event.count
    return dict(counts.most_common(MOST_EVENTS))


def spikes_in(events: list[Event], steps: I64, bins: Bins) -> F64:
    """How many spikes each bin has."""
    at = np.searchsorted(steps, [event.step for event in events if event.kind == "spike"])
    flags = np.bincount(at[at < len(steps)], minlength=len(steps)) > 0
    return bins.count(flags).astype(np.float64)


def norms_of_groups(history: History, bins: Bins) -> dict[str, F64]:
    """The mean total norm in each bin, for the groups with the largest norms."""
    means = {name: bins.spread(group.total_norm)[1] for name, group in history.groups.items()}
    size = {name: np.nanmax(mean, initial=-np.inf) for name, mean in means.items()}
    shown = sorted(means, key=lambda name: -size[name])[:MOST_GROUPS]
    return {name: means[name] for name in means if name in shown}


def own_numbers(history: History, bins: Bins) -> dict[str, dict[str, F64]]:
    """The curves of each chart by its title: one for each of the caller's own numbers. Of norms over the
    positions of a sequence (`GradientOverTime`) some positions from the first to the last share a chart."""
    charts: dict[str, dict[str, F64]] = {}
    for name, values in history.extra.items():
        title, _, position = name.rpartition("/") if name.startswith(OVER_TIME) else (name, "", "")
        charts.setdefault(title, {})[position or name] = values
    shown = list(charts.items())[:MOST_OWN]
    return {
        title: {name: bins.spread(values)[1] for name, values in _some(curves)} for title, curves in shown
    }


def _some(curves: dict[str, F64]) -> list[tuple[str, F64]]:
    """Five of them, evenly from the first position to the last."""
    names = sorted(curves, key=lambda name: int(name) if name.isdecimal() else 0)
    kept = np.unique(np.linspace(0, len(names) - 1, 5).astype(int))
    return [(names[i], curves[names[i]]) for i in kept]
