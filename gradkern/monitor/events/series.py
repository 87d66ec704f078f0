"""`EventSeries`: events of one kind that come close together are one event with a count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gradkern.history.rows import EventRow

#: Recorded steps from an event to the next one that still extends it. A run that skips every step has one
#: event; one with many separate events has one for every 100 steps at most, of each kind.
GAP = 100


@dataclass
class _Series:
    event: EventRow
    count: int
    last_step: int
    last_row: int


class EventSeries:
    """Turns what happens in a step into new or extended events.

    An event that stands for several has their "count" and "last_step", and of norms the largest.
    """

    def __init__(self) -> None:
        self._row = 0
        self._series: dict[tuple[Any, ...], _Series] = {}
        self._latest = 0.0

    def next_step(self) -> None:
        """Another step was recorded."""
        self._row += 1

    def add(self, step: int, time: float, kind: str, data: dict[str, Any]) -> EventRow:
        """Something happened in this step."""
        key = (kind, *(data.get(name) for name in ("reason", "part", "group", "setting")))
        series = self._series.get(key)
        if series is None or self._row - series.last_row > GAP or step <= series.last_step:
            # Its time tells an event from others of its kind and step.
            self._latest = max(time, self._latest + 1e-6)
            series = self._series[key] = _Series(EventRow(step, kind, data, self._latest), 1, step, self._row)
            return series.event
        series.count, series.last_step, series.last_row = series.count + 1, step, self._row
        merged = {**_merged(series.event.data, data), "count": series.count, "last_step": step}
        series.event = EventRow(series.event.step, kind, merged, series.event.time, extends=True)
        return series.event


def _merged(first: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    if "after" in data:
        return {**first, "after": data["after"]}
    return data if data.get("norm", 0.0) > first.get("norm", 0.0) else first
