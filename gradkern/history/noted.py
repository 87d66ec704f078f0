"""`Noted`: extra numbers, groups, events and facts of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradkern.history import format
from gradkern.history.format import HistoryError
from gradkern.history.named import F64, LOSS, GroupColumns, read_named
from gradkern.history.reader import names_file
from gradkern.history.rows import EXTENDABLE
from gradkern.history.step_numbers import StepNumbers


@dataclass(frozen=True)
class Event:
    """An event of a run: a finding, a skipped step, a spike, a rollback, a changed limit."""

    step: int
    kind: str
    """"finding", "skip", "spike", "threshold", "rollback", "stop", "warning", or a kind of your own."""
    data: dict[str, Any]
    """Details, as JSON values. An event that stands for several has their "count" and "last_step"."""
    time: float = 0.0
    """When it was noted, in seconds since 1970."""

    @property
    def count(self) -> int:
        """How often it happened. More than 1 for an event that stands for several."""
        count = self.data.get("count") if "last_step" in self.data else 1
        return count if isinstance(count, int) and count > 0 else 1


class Noted(StepNumbers):
    """Named numbers, events and facts of a run."""

    @property
    @names_file
    def extra(self) -> Mapping[str, F64]:
        """Your own numbers (``record(extra=…)``): an array [T] for each name, NaN at steps without it.

        Amendments replace earlier values. The losses of parts are included as "loss/<part>".
        """
        if "extra" not in self._cache:
            seqs = self._all["seq"]
            found = read_named(self._db, "extras", seqs, 1)
            for name, values in self._amendments().items():
                if name != LOSS:
                    known = ~np.isnan(values)
                    column = found.setdefault(name, np.full(values.shape, np.nan))
                    column[known] = values[known]
            live = {name: values[self._rows, 0] for name, values in found.items()}
            self._cache["extra"] = MappingProxyType(live)
        return self._cache["extra"]

    @property
    @names_file
    def parts(self) -> tuple[str, ...]:
        """Names of the models, if several were recorded together; else empty.

        Parameters are then called "<part>.<name>". `groups` has the norms of each part, and `extra` its loss,
        "loss/<part>".
        """
        found = self.meta.get("parts", [])
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise HistoryError("[History] meta 'parts': damaged: expected a list of names")
        return tuple(found)

    @property
    @names_file
    def max_norm(self) -> F64:
        """[T] as `threshold`. In files of version 1, which lack it, it is computed from the steps that were
        clipped."""
        if self.parts or self.facts.get("policy"):
            return self.threshold
        with np.errstate(invalid="ignore"):
            deduced = self.clip_coef * (self.total_norm + 1e-6)
        deduced = np.where(self.clipped & np.isfinite(deduced), deduced, np.nan)
        return np.where(np.isnan(self.threshold), deduced, self.threshold)

    @property
    @names_file
    def groups(self) -> Mapping[str, GroupColumns]:
        """`GroupColumns` with [T] arrays for each named group of a clipper and each part of the run."""
        if "groups" not in self._cache:
            found = read_named(self._db, "groups", self._all["seq"], 3)
            live = {name: GroupColumns(*values[self._rows].T) for name, values in found.items()}
            self._cache["groups"] = MappingProxyType(live)
        return self._cache["groups"]

    @property
    @names_file
    def events(self) -> list[Event]:
        """All events in order of time, without those of steps that were replaced."""
        if "events" not in self._cache:
            found = self._read_events()
            branches, steps = (np.array([row[i] for row in found], dtype=np.int64) for i in (1, 2))
            live = self._live(branches, steps)
            self._cache["events"] = [row[3] for row, kept in zip(found, live) if kept]
        return list(self._cache["events"])

    def _read_events(self) -> list[tuple[int, int, int, Event]]:
        """(id, branch, step, event) of each event. Reads new ones, and those that may have been extended."""
        known: list[tuple[int, int, int, Event]] = self._kept.setdefault("events", [])
        last = known[-1][0] - EXTENDABLE if known else -1
        while known and known[-1][0] > last:
            known.pop()
        new = []
        query = "SELECT id, branch, step, time, kind, data FROM events WHERE id > ? ORDER BY id"
        for number, branch, step, time, kind, text in self._db.execute(query, (last,)):
            data = format.read_json(text, f"event of step {step!r}")
            if not isinstance(data, dict) or not isinstance(kind, str):
                raise HistoryError(f"[History] event of step {step!r}: damaged: expected an object")
            new.append((number, int(branch), int(step), Event(int(step), kind, data, float(time))))
        known += new
        return known

    @property
    @names_file
    def facts(self) -> dict[str, Any]:
        """Facts about the model, its optimizers and the policy, as JSON values; empty if unknown.

        The keys are "modules" (kinds by name), "graph" (order of execution, operations, serial and unused
        parameters, those whose gradients are cast from float16), "optimizers" (an entry per parameter
        group), "policy", "gradient_dtypes", "loss_scale" and "parts".
        """
        rows = self._db.execute("SELECT key, value FROM facts").fetchall()
        return {str(key): format.read_json(value, f"fact {key!r}") for key, value in rows}

    @property
    @names_file
    def ever_nonzero(self) -> NDArray[np.float32]:
        """[N] fraction of the sampled elements whose gradient was ever non-zero; NaN if the parameter was
        never sampled."""
        if "nonzero" not in self._cache:
            ids, _ = self.live_rows("looks")
            fractions = np.full(len(self.names), np.nan, dtype=np.float32)
            for layout, blob in self.read_rows("looks", "nonzero", ids):
                values = format.decode(blob, len(layout.columns), "looks").astype(np.float32)
                fractions[layout.columns] = np.fmax(fractions[layout.columns], values)
            self._cache["nonzero"] = fractions
        return self._cache["nonzero"]
