"""The rows of one transaction, table by table."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Sequence
from typing import Any

from gradkern.history import format
from gradkern.history.named import NameLists, pack, pack_groups
from gradkern.history.pyramid import Bucket
from gradkern.history.rows import (
    EXTENDABLE,
    AmendmentRow,
    EventRow,
    FactsRow,
    HistogramRow,
    StepRow,
    WeightsRow,
    ZerosRow,
)

_INSERT = {
    "steps": "INSERT INTO steps VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
    "vals": "INSERT INTO vals VALUES (?,?,?,?,?,?,?)",
    "summaries": "INSERT INTO summaries VALUES (?,?,?)",
    "extras": "INSERT INTO extras VALUES (?,?,?)",
    "groups": "INSERT INTO groups VALUES (?,?,?)",
    "weights": "INSERT INTO weights (branch, step, layout, exact, weight_norm, ratio) VALUES (?,?,?,?,?,?)",
    "hists": "INSERT INTO hists (branch, step, layout, counts, underflow) VALUES (?,?,?,?,?)",
    "looks": "INSERT INTO looks (branch, step, layout, nonzero, zeros) VALUES (?,?,?,?,?)",
    "events": "INSERT INTO events (branch, step, time, kind, data) VALUES (?,?,?,?,?)",
    "facts": "INSERT OR REPLACE INTO facts VALUES (?,?)",
    "amendments": "INSERT INTO amendments (seq, names, data) VALUES (?,?,?)",
}
_EXTEND = (
    f"UPDATE events SET data = ? WHERE id > (SELECT max(id) - {EXTENDABLE} FROM events) "
    "AND step = ? AND kind = ? AND time = ?"
)


class Batch:
    """Values for each table; `insert` writes them."""

    def __init__(self, connection: sqlite3.Connection, lists: NameLists) -> None:
        self._db, self._lists = connection, lists
        self._rows: dict[str, list[tuple[Any, ...]]] = {table: [] for table in _INSERT}
        self._amendments: list[AmendmentRow] = []
        self._extended: dict[tuple[int, str, float], tuple[Any, ...]] = {}

    def add_step(self, seq: int, branch: int, layout: int, row: StepRow) -> None:
        """Add a recorded step, with its extra values and groups."""
        lr = struct.pack(f"<{len(row.lr)}d", *row.lr) if row.lr else None
        head = (seq, branch, row.step, layout, row.flags, row.time)
        numbers = (row.loss, row.total_norm, row.clip_coef, row.inv_scale, lr, row.threshold)
        self._rows["steps"].append((*head, *numbers))
        self._rows["vals"].append(_column_values(seq, row))
        if row.extra:
            self._rows["extras"].append((seq, self._lists.add(tuple(row.extra)), pack(row.extra)))
        if row.groups:
            self._rows["groups"].append((seq, self._lists.add(tuple(row.groups)), pack_groups(row.groups)))

    def add_summaries(self, done: Sequence[tuple[int, int, Bucket]]) -> None:
        """Add aggregates that a step has completed: (level, index, bucket)s."""
        self._rows["summaries"] += [(level, i, b.body.astype("<f4").tobytes()) for level, i, b in done]

    def add_periodic(self, branch: int, layout: int, row: WeightsRow | HistogramRow | ZerosRow) -> None:
        """Add periodic statistics."""
        head = branch, row.step, layout
        if isinstance(row, WeightsRow):
            blobs = format.encode(row.weight_norm), format.encode(row.ratio)
            self._rows["weights"].append((*head, int(row.exact), *blobs))
        elif isinstance(row, HistogramRow):
            counts = format.encode_counts(row.counts.reshape(-1)) or b""
            self._rows["hists"].append((*head, counts, format.encode(row.underflow.reshape(-1))))
        else:
            zeros = row.zeros.astype("<i8").tobytes()
            self._rows["looks"].append((*head, format.encode(row.nonzero), zeros))

    def add_other(self, branch: int, row: EventRow | AmendmentRow | FactsRow) -> None:
        """Add an event, facts, or an amendment."""
        if isinstance(row, EventRow):
            values = (branch, row.step, row.time, row.kind, format.write_json(row.data))
            if row.extends:
                self._extended[row.step, row.kind, row.time] = values
            else:
                self._rows["events"].append(values)
        elif isinstance(row, FactsRow):
            facts = [(key, format.write_json(value)) for key, value in row.facts.items()]
            self._rows["facts"] += facts
        else:
            self._amendments.append(row)

    def insert(self) -> None:
        """Write everything. Amendments come last: the steps they amend may be in this batch."""
        for table, rows in self._rows.items():
            if rows:
                self._db.executemany(_INSERT[table], rows)
        for values in self._extended.values():
            _, step, time, kind, data = values
            if not self._db.execute(_EXTEND, (data, step, kind, time)).rowcount:
                self._db.execute(_INSERT["events"], values)
        for row in self._amendments:
            seq = self._seq_of(row.step)
            if seq is not None:
                values = (seq, self._lists.add(tuple(row.values)), pack(row.values))
                self._db.execute(_INSERT["amendments"], values)

    def _seq_of(self, step: int) -> int | None:
        """The live row of a step, searched from the end; None if the step was not recorded."""
        for seq, found in self._db.execute("SELECT seq, step FROM steps ORDER BY seq DESC"):
            if found <= step:
                return seq if found == step else None
        return None


def _column_values(seq: int, row: StepRow) -> tuple[Any, ...]:
    """The row of `vals`."""
    counts = [None if c is None else format.encode_counts(c) for c in (row.nonfinite, row.zeros)]
    if row.zeros is not None and counts[1] is None:
        counts[1] = b""  # counted, and there were none
    l2_norm = None if row.l2_norm is None else format.encode(row.l2_norm)
    factor = None if row.factor is None else format.encode(row.factor)
    return (seq, format.encode(row.norm), format.encode(row.max_abs), l2_norm, *counts, factor)
