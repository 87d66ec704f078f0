"""`EventRuns`: events of one kind that come close together are one event with a count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gradkern.history.rows import EventRow

#: Recorded steps from an event to the next one that still extends it. A run that skips every step has one
#: event; one with many separate events has one for every 100 steps at most, of each kind.
GAP = 100


@dataclass
class _Run:
    event: EventRow
    count: int
    last_step: int
    last_row: int


class EventRuns:
    """Turns what happens in a step into new or extended events.

    An event that stands for several has their "count" and "last_step", and of norms the largest.
    """

    def __init__(self) -> None:
        self._row = 0
        self._runs: dict[tuple[Any, ...], _Run] = {}
        self._latest = 0.0

    def next_step(self) -> None:
        """Another step was recorded."""
        self._row += 1

    def add(self, step: int, time: float, kind: str, data: dict[str, Any]) -> EventRow:
        """Something happened in this step."""
        key = (kind, *(data.get(name) for name in ("reason", "part", "group")))
        run = self._runs.get(key)
        if run is None or self._row - run.last_row > GAP or step <= run.last_step:
            # Its time tells an event from others of its kind and step.
            self._latest = max(time, self._latest + 1e-6)
            run = self._runs[key] = _Run(EventRow(step, kind, data, self._latest), 1, step, self._row)
            return run.event
        run.count, run.last_step, run.last_row = run.count + 1, step, self._row
        merged = {**_merged(run.event.data, data), "count": run.count, "last_step": step}
        run.event = EventRow(run.event.step, kind, merged, run.event.time, extends=True)
        return run.event


def _merged(first: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    if "after" in data:
        return {**first, "after": data["after"]}
    return data if data.get("norm", 0.0) > first.get("norm", 0.0) else first
