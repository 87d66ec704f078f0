"""Named numbers of a step: the caller's own, those of groups, and amendments."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradkern.history import format
from gradkern.history.format import HistoryError
from gradkern.history.rows import GroupValues

F64 = NDArray[np.float64]

#: Largest number of names in all lists of a run.
MOST_NAMES = 4096
#: The entry of `amendments` that is the step's loss.
LOSS = "loss"
#: Prefix of extra numbers that are gradient norms over the time steps of a sequence: "…<module>/<position>".
OVER_TIME = "gradient_over_time/"


def loss_of(part: str) -> str:
    """Name of the loss of a part of the step; "" is the whole."""
    return f"{LOSS}/{part}" if part else LOSS


@dataclass(frozen=True)
class GroupColumns:
    """Statistics of a named group of parameters: [T] arrays, NaN where it was not measured."""

    total_norm: F64
    """Norm of the group's gradients before clipping."""
    factor: F64
    """What they were multiplied by; NaN where clipping was off."""
    threshold: F64
    """Norm above which the group is clipped; NaN where there was no limit."""


class NameLists:
    """Writes `name_lists`: each list of names once."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._ids = {names: number for number, names in read_lists(connection).items()}
        self._names = {name for names in self._ids for name in names}

    def add(self, names: tuple[str, ...]) -> int:
        """The id of a list of distinct names."""
        number = self._ids.get(names)
        if number is None:
            self._names.update(names)
            if len(self._names) > MOST_NAMES:
                raise ValueError(f"more than {MOST_NAMES} names of extra values and groups in one run")
            number = max(self._ids.values(), default=0) + 1
            query = "INSERT INTO name_lists VALUES (?, ?)"
            self._db.execute(query, (number, format.write_json(list(names))))
            self._ids[names] = number
        return number


def pack(values: Mapping[str, float]) -> bytes:
    """The blob of an `extras` or `amendments` row."""
    return np.array([*values.values()], dtype="<f8").tobytes()


def pack_groups(groups: Mapping[str, GroupValues]) -> bytes:
    """The blob of a `groups` row."""
    return np.array([*groups.values()], dtype="<f8").tobytes()


def read_lists(connection: sqlite3.Connection) -> dict[int, tuple[str, ...]]:
    """All lists of names, checked."""
    lists: dict[int, tuple[str, ...]] = {}
    everything: set[str] = set()
    for number, text in connection.execute("SELECT id, names FROM name_lists ORDER BY id"):
        names = format.read_json(text, f"name_lists {number}")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise HistoryError(f"[History] name_lists {number}: damaged: expected a list of names")
        lists[int(number)] = tuple(names)
        everything.update(names)
        if len(everything) > MOST_NAMES:
            raise HistoryError(f"[History] name_lists: expected at most {MOST_NAMES} names in all")
    return lists


def read_named(
    connection: sqlite3.Connection, table: str, seqs: NDArray[np.int64], width: int
) -> dict[str, F64]:
    """Read `extras`, `groups` or `amendments`: for each name its values in all rows of `steps`, [R, width].

    Args:
        seqs: [R] ascending numbers of the rows; rows of the table without one are ignored.
        width: numbers per name.
    """
    lists = read_lists(connection)
    query = f"SELECT seq, names, data FROM {table} ORDER BY {'id' if table == 'amendments' else 'seq'}"
    rows: dict[int, tuple[list[int], list[bytes]]] = {}
    for seq, number, data in connection.execute(query):
        names = lists.get(number)
        good = names is not None and isinstance(data, bytes) and len(data) == 8 * width * len(names)
        if not good or not isinstance(seq, int):
            raise HistoryError(f"[History] {table}: damaged: expected numbers of a list of names")
        where, blobs = rows.setdefault(number, ([], []))
        where.append(seq)
        blobs.append(data)
    found: dict[str, F64] = {}
    for number, (where, blobs) in rows.items():
        values = np.frombuffer(b"".join(blobs), dtype="<f8").reshape(len(blobs), -1, width)
        _put(found, lists[number], seqs, np.array(where, dtype=np.int64), values)
    return found


def _put(
    found: dict[str, F64], names: Sequence[str], seqs: NDArray[np.int64], where: NDArray[Any], values: F64
) -> None:
    at = np.searchsorted(seqs, where)
    known = (at < len(seqs)) & (seqs[np.minimum(at, len(seqs) - 1)] == where) if len(seqs) else at < 0
    for i, name in enumerate(names):
        if name not in found:
            found[name] = np.full((len(seqs), values.shape[2]), np.nan)
        found[name][at[known]] = values[known, i]
