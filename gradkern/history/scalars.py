"""The plain numbers of all steps, read in blocks of 256 and single rows for the rest."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradkern.history.format import HistoryError

BLOCK = 256

KINDS: dict[str, Any] = {
    "seq": np.int64,
    "branch": np.int64,
    "step": np.int64,
    "layout": np.int64,
    "flags": np.int64,
    "time": np.float64,
    "loss": np.float64,
    "total_norm": np.float64,
    "clip_coef": np.float64,
    "inv_scale": np.float64,
    "threshold": np.float64,
}
_QUERY = f"SELECT {', '.join(KINDS)}, lr FROM steps WHERE seq > ? AND seq <= ? ORDER BY seq"


def write_blocks(connection: sqlite3.Connection, before: int, last: int) -> None:
    """Write the blocks that the rows after `before` up to `last` have completed."""
    for index in range(before // BLOCK, last // BLOCK):
        rows = connection.execute(_QUERY, (index * BLOCK, (index + 1) * BLOCK)).fetchall()
        columns, lr = _from_rows(rows)
        data = b"".join(
            column.astype(column.dtype.newbyteorder("<")).tobytes() for column in columns.values()
        )
        connection.execute("INSERT INTO blocks VALUES (?, ?)", (index, data + lr.astype("<f8").tobytes()))


class Scalars:
    """All rows of `steps`, including replaced ones, in the order in which they were written."""

    def __init__(self) -> None:
        self.columns: dict[str, NDArray[Any]] = {
            name: np.zeros(0, dtype=kind) for name, kind in KINDS.items()
        }
        self.lr: NDArray[np.float64] = np.zeros((0, 0))
        self.last_seq = 0

    def read(self, connection: sqlite3.Connection) -> int:
        """Read what was written since; returns the number of rows.

        Raises:
            HistoryError: a row or a block is damaged.
        """
        before = self.last_seq
        pieces = [] if before % BLOCK else self._blocks(connection)
        rows = connection.execute(_QUERY, (self.last_seq, 2**63 - 1)).fetchall()
        if rows:
            pieces.append(_from_rows(rows))
            self.last_seq = int(pieces[-1][0]["seq"][-1])
        if pieces:
            pieces.insert(0, (self.columns, self.lr))
            self.columns = {name: np.concatenate([p[0][name] for p in pieces]) for name in KINDS}
            width = max(p[1].shape[1] for p in pieces)
            self.lr = np.concatenate([_wide(p[1], width) for p in pieces])
        return self.last_seq - before

    def _blocks(
        self, connection: sqlite3.Connection
    ) -> list[tuple[dict[str, NDArray[Any]], NDArray[np.float64]]]:
        pieces = []
        query = "SELECT idx, data FROM blocks WHERE idx >= ? ORDER BY idx"
        for index, data in connection.execute(query, (self.last_seq // BLOCK,)):
            piece = _from_block(data)
            wanted = np.arange(self.last_seq + 1, self.last_seq + BLOCK + 1)
            if index != self.last_seq // BLOCK or not np.array_equal(piece[0]["seq"], wanted):
                raise HistoryError(f"[History] block {index!r}: damaged: expected rows from {wanted[0]}")
            pieces.append(piece)
            self.last_seq += BLOCK
        return pieces


def _from_rows(rows: Sequence[tuple[Any, ...]]) -> tuple[dict[str, NDArray[Any]], NDArray[np.float64]]:
    *columns, blobs = zip(*rows)
    try:
        named = {name: np.array(c, dtype=kind) for (name, kind), c in zip(KINDS.items(), columns)}
    except (TypeError, ValueError, OverflowError) as error:
        raise HistoryError(f"[History] steps: a damaged row: {error}") from error
    return named, _ragged(blobs)


def _from_block(data: Any) -> tuple[dict[str, NDArray[Any]], NDArray[np.float64]]:
    size = 8 * BLOCK
    head = size * len(KINDS)
    if not isinstance(data, bytes) or len(data) < head or len(data) % size:
        raise HistoryError("[History] blocks: damaged: expected packed columns")
    columns = {
        name: np.frombuffer(data, dtype=np.dtype(kind).newbyteorder("<"), count=BLOCK, offset=i * size)
        for i, (name, kind) in enumerate(KINDS.items())
    }
    lr = np.frombuffer(data, dtype="<f8", offset=head) if len(data) > head else np.zeros(0)
    return columns, lr.reshape(BLOCK, -1)


def _ragged(blobs: Sequence[Any]) -> NDArray[np.float64]:
    """Rows of float64 of different lengths, padded with NaN."""
    if not all(blob is None or (isinstance(blob, bytes) and len(blob) % 8 == 0) for blob in blobs):
        raise HistoryError("[History] steps.lr: damaged: expected reals")
    width = max((len(blob) // 8 for blob in blobs if blob is not None), default=0)
    padded = np.full((len(blobs), width), np.nan)
    for row, blob in enumerate(blobs):
        if blob:
            padded[row, : len(blob) // 8] = np.frombuffer(blob, dtype="<f8")
    return padded


def _wide(lr: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    if lr.shape[1] == width:
        return lr
    return np.concatenate([lr, np.full((len(lr), width - lr.shape[1]), np.nan)], axis=1)
