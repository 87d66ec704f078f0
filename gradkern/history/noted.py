"""`Noted`: the caller's numbers, groups, events and facts of a run."""

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
    """Something that happened at a step: a finding, skipped steps, a spike, a rollback, a changed limit."""

    step: int
    kind: str
    """"finding", "skip", "spike", "threshold", "rollback", "stop", or the caller's own."""
    data: dict[str, Any]
    """Details, as JSON values. If it stands for several, their "count" and the "last_step"."""
    time: float = 0.0
    """When it was noted, in seconds since 1970."""

    @property
    def count(self) -> int:
        """How often it happened: more than once for an event that stands for several."""
        count = self.data.get("count") if "last_step" in self.data else 1
        return count if isinstance(count, int) and count > 0 else 1


class Noted(StepNumbers):
    """Named numbers, events and facts of a run."""

    @property
    @names_file
    def extra(self) -> Mapping[str, F64]:
        """Your own numbers (``record(extra=…)``): [T] for each name, NaN where it was not given.

        Amendments replace earlier values. Includes the losses of parts, "loss/<part>".
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
        """Names of the models whose steps make up a step of the run; empty where there is one model.

        Parameters are called "<part>.<name>" then, `groups` has the numbers of each part, and `extra` its
        loss, "loss/<part>".
        """
        found = self.meta.get("parts", [])
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise HistoryError("[History] meta 'parts': expected a list of names, got a damaged value")
        return tuple(found)

    @property
    @names_file
    def max_norm(self) -> F64:
        """[T] `threshold`. In runs that do not have it (of version 1), deduced from what was clipped."""
        if self.parts or self.facts.get("policy"):
            return self.threshold
        with np.errstate(invalid="ignore"):
            deduced = self.clip_coef * (self.total_norm + 1e-6)
        deduced = np.where(self.clipped & np.isfinite(deduced), deduced, np.nan)
        return np.where(np.isnan(self.threshold), deduced, self.threshold)

    @property
    @names_file
    def groups(self) -> Mapping[str, GroupColumns]:
        """[T] numbers of each named group of a clipper, and of each part of the run."""
        if "groups" not in self._cache:
            found = read_named(self._db, "groups", self._all["seq"], 3)
            live = {name: GroupColumns(*values[self._rows].T) for name, values in found.items()}
            self._cache["groups"] = MappingProxyType(live)
        return self._cache["groups"]

    @property
    @names_file
    def events(self) -> list[Event]:
        """What happened, in order of time; without what a later branch replaced."""
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
                raise HistoryError(
                    f"[History] event of step {step!r}: expected an object, got a damaged value"
                )
            new.append((number, int(branch), int(step), Event(int(step), kind, data, float(time))))
        known += new
        return known

    @property
    @names_file
    def facts(self) -> dict[str, Any]:
        """What the monitor found out about the model, its optimizers and the policy.

        "modules": kinds by name; "graph": order of execution, operations, serial and unused parameters;
        "optimizers": an entry for each parameter group; "policy"; "gradient_dtypes"; "loss_scale"; "parts".
        """
        rows = self._db.execute("SELECT key, value FROM facts").fetchall()
        return {str(key): format.read_json(value, f"fact {key!r}") for key, value in rows}

    @property
    @names_file
    def ever_nonzero(self) -> NDArray[np.float32]:
        """[N] fraction of the sampled elements whose gradient was non-zero at one look at least; NaN if the
        parameter was never looked at."""
        if "nonzero" not in self._cache:
            ids, _ = self.live_rows("looks")
            fractions = np.full(len(self.names), np.nan, dtype=np.float32)
            for layout, blob in self.read_rows("looks", "nonzero", ids):
                values = format.decode(blob, len(layout.columns), "looks").astype(np.float32)
                fractions[layout.columns] = np.fmax(fractions[layout.columns], values)
            self._cache["nonzero"] = fractions
        return self._cache["nonzero"]
