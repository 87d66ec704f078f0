"""The file behind a history: one SQLite database, one compact row a step.

    RUN/history.db
      meta      key, value (JSON)
      layouts   a set of parameters: names, sizes, …; a new one whenever the model's parameters change
      branches  where recording went on from an earlier step (after a resume)
      steps     a narrow row of plain numbers for each recorded step
      blocks    the rows of `steps` again, 256 packed in one, to read them all at once
      vals      the per-parameter columns of a step: little-endian blobs, one entry a parameter
      weights   weight norms and update ratios, every so often
      hists     log2 histograms, opt-in
      summaries aggregates of 16, 64, 256, … steps, written with the step that completes them

Nothing read from the file is trusted: its schema must be exactly the one below (no trigger, no
view), every blob's length is checked, and nothing in it is ever executed or unpickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradkern.monitor import file_systems

DATABASE = "history.db"
APPLICATION_ID = 0x67726B6E  # "grkn"
VERSION = 1
BUSY_SECONDS = 5.0

SCHEMA = {
    "meta": "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "layouts": "CREATE TABLE layouts (id INTEGER PRIMARY KEY, params TEXT NOT NULL)",
    "branches": (
        "CREATE TABLE branches (id INTEGER PRIMARY KEY, from_step INTEGER, first_seq INTEGER NOT NULL, "
        "kept INTEGER NOT NULL, time REAL NOT NULL)"
    ),
    "steps": (
        "CREATE TABLE steps (seq INTEGER PRIMARY KEY, branch INTEGER NOT NULL, step INTEGER NOT NULL, "
        "layout INTEGER NOT NULL, flags INTEGER NOT NULL, time REAL NOT NULL, loss REAL, "
        "total_norm REAL, clip_coef REAL, inv_scale REAL, lr BLOB)"
    ),
    "blocks": "CREATE TABLE blocks (idx INTEGER PRIMARY KEY, data BLOB NOT NULL)",
    "vals": (
        "CREATE TABLE vals (seq INTEGER PRIMARY KEY, norm BLOB NOT NULL, max_abs BLOB NOT NULL, "
        "l2_norm BLOB, nonfinite BLOB, zeros BLOB)"
    ),
    "weights": (
        "CREATE TABLE weights (id INTEGER PRIMARY KEY, branch INTEGER NOT NULL, step INTEGER NOT NULL, "
        "layout INTEGER NOT NULL, exact INTEGER NOT NULL, weight_norm BLOB NOT NULL, ratio BLOB NOT NULL)"
    ),
    "hists": (
        "CREATE TABLE hists (id INTEGER PRIMARY KEY, branch INTEGER NOT NULL, step INTEGER NOT NULL, "
        "layout INTEGER NOT NULL, counts BLOB NOT NULL, underflow BLOB NOT NULL)"
    ),
    "summaries": (
        "CREATE TABLE summaries (level INTEGER, idx INTEGER, step0 INTEGER NOT NULL, step1 INTEGER NOT NULL, "
        "head BLOB NOT NULL, body BLOB NOT NULL, PRIMARY KEY (level, idx)) WITHOUT ROWID"
    ),
}

# Bits of steps.flags. SQLite keeps NaN as NULL, so that a value is there is said by a bit.
HAS_LOSS = 1
HAS_COEF = 2
SKIPPED = 4
PHASE_SHIFT = 4  # two bits: an index into PHASES
PHASES = ("before_clip", "measured", "after_clip")

_F4, _F8 = np.dtype("<f4"), np.dtype("<f8")


class HistoryError(RuntimeError):
    """A run's file cannot be read or written; the message names the file."""


def connect_writer(folder: Path, journal: str | None = None) -> tuple[sqlite3.Connection, str]:
    """The database of a run to write to, created if it is not there.

    Returns:
        The connection (usable from any one thread at a time) and the journal mode in use.

    Raises:
        HistoryError: the folder cannot be written, or the file is not a sound history; it is left
            as it is.
    """
    file = folder / DATABASE
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HistoryError(
            f"[GradMonitor] run_dir {str(folder)!r}: expected a folder that can be written, got: {error}"
        ) from error
    if file.exists() and file.stat().st_size:
        _check_header(file, "GradMonitor")
    try:
        connection = sqlite3.connect(
            file, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA trusted_schema=OFF")
        fresh = not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if fresh:
            connection.execute("PRAGMA page_size=8192")
        wanted = journal or file_systems.journal_for(folder)
        mode = str(connection.execute(f"PRAGMA journal_mode={wanted}").fetchone()[0]).upper()
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA journal_size_limit=16777216")
        if fresh:
            _create(connection)
        else:
            _check_schema(connection, file, "GradMonitor")
            connection.execute("BEGIN IMMEDIATE")  # says now, not in an hour, that it cannot be written
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise HistoryError(_explain(error, file, "GradMonitor")) from error
    except UnicodeError as error:  # SQLite's own message quotes the damage
        raise HistoryError(_explain(sqlite3.DatabaseError("malformed"), file, "GradMonitor")) from error
    return connection, mode


def connect_reader(folder: str | os.PathLike[str]) -> sqlite3.Connection:
    """The database of a run to read from, while it is written or afterwards; never changes it.

    Raises:
        HistoryError: there is none, or it is not a sound history; names the file.
    """
    file = Path(folder)
    file = file / DATABASE if file.is_dir() else file
    if not file.is_file():
        raise HistoryError(f"[History.open] {str(file)!r}: expected a recorded run, got no such file")
    _check_header(file, "History.open")
    try:
        connection = _open_read_only(file)
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.text_factory = _decode_text
        if sys.version_info >= (3, 11):
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1 << 28)
        _check_schema(connection, file, "History.open")
    except sqlite3.Error as error:
        raise HistoryError(_explain(error, file, "History.open")) from error
    except UnicodeError as error:  # SQLite's own message quotes the damage
        raise HistoryError(_explain(sqlite3.DatabaseError("malformed"), file, "History.open")) from error
    return connection


def _open_read_only(file: Path) -> sqlite3.Connection:
    uri = file.absolute().as_uri() + "?mode=ro"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, check_same_thread=False)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return connection
    except sqlite3.OperationalError:
        connection.close()
        wal = Path(f"{file}-wal")
        if wal.exists() and wal.stat().st_size:
            raise
        # A WAL database in a folder that cannot be written: all of it is in the main file.
        return sqlite3.connect(uri + "&immutable=1", uri=True, check_same_thread=False)


def _decode_text(text: bytes) -> str:
    return text.decode("utf-8", "replace")


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for statement in SCHEMA.values():
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version={VERSION}")
    connection.execute("COMMIT")


def _check_header(file: Path, operation: str) -> None:
    """The first 100 bytes: is it SQLite, is it ours, is it all there?"""
    try:
        with file.open("rb") as opened:
            header = opened.read(100)
            size = opened.seek(0, os.SEEK_END)
    except OSError as error:
        raise HistoryError(f"[{operation}] {str(file)!r}: cannot be read: {error}") from error
    remedy = "it is left as it is: move it away, or use another run_dir"
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise HistoryError(
            f"[{operation}] {str(file)!r}: expected a gradkern history, got another file; {remedy}"
        )
    journals = [Path(f"{file}{ending}") for ending in ("-wal", "-journal")]
    if any(journal.exists() and journal.stat().st_size for journal in journals):
        return  # being written, or to be recovered: SQLite sees to it
    if int.from_bytes(header[68:72], "big") not in (APPLICATION_ID, 0):
        raise HistoryError(
            f"[{operation}] {str(file)!r}: expected a gradkern history, got another program's "
            f"database; {remedy}"
        )
    page = int.from_bytes(header[16:18], "big")
    expected = (65536 if page == 1 else page) * int.from_bytes(header[28:32], "big")
    if header[24:28] == header[92:96] and size < expected:
        raise HistoryError(
            f"[{operation}] {str(file)!r}: the file is truncated: expected {expected} bytes, got "
            f"{size}; {remedy}"
        )


def _check_schema(connection: sqlite3.Connection, file: Path, operation: str) -> None:
    found = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise HistoryError(
            f"[{operation}] {str(file)!r}: written by a newer gradkern (format {version}, this one reads "
            f"up to {VERSION}); update gradkern"
        )
    if dict(found) != SCHEMA:
        raise HistoryError(
            f"[{operation}] {str(file)!r}: expected a gradkern history, got a database with other tables"
        )


def _explain(error: sqlite3.Error, file: Path, operation: str) -> str:
    text = str(error)
    if "not a database" in text or "malformed" in text:
        return f"[{operation}] {str(file)!r}: the file is corrupt ({text}); it is left as it is: move it away"
    if "readonly" in text or "unable to open" in text:
        return f"[{operation}] {str(file)!r}: expected a folder and file that can be written, got: {text}"
    if "locked" in text:
        return f"[{operation}] {str(file)!r}: another process holds it ({text})"
    return f"[{operation}] {str(file)!r}: {text}"


def explain(error: sqlite3.Error, file: Path, operation: str) -> HistoryError:
    """The error to raise for one of SQLite's, naming the file."""
    return HistoryError(_explain(error, file, operation))


@contextlib.contextmanager
def reading(file: Path, operation: str = "History") -> Iterator[None]:
    """Whatever goes wrong in here with what a file holds becomes a HistoryError that names the file.

    The types and sizes of what SQLite returns are the file's, not ours.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise explain(error, file, operation) from error
    except HistoryError as error:
        if str(file) in str(error):
            raise
        raise HistoryError(f"{error} ({str(file)!r})") from error
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise HistoryError(f"[{operation}] {str(file)!r}: a damaged row: {error}") from error


def decode(blob: Any, count: int, what: str) -> NDArray[Any]:
    """A column of `count` reals: float32, or float64 where the blob is twice as long."""
    if not isinstance(blob, bytes) or len(blob) not in (4 * count, 8 * count):
        raise HistoryError(f"[History] {what}: expected {count} numbers, got a damaged row")
    wide = count > 0 and len(blob) == 8 * count
    return np.frombuffer(blob, dtype="<f8" if wide else "<f4")


def encode(values: NDArray[Any]) -> bytes:
    """The blob of a column: float32 or float64 as it comes."""
    if values.dtype in (_F4, _F8):
        return values.tobytes()
    return values.astype("<f8" if values.dtype == np.float64 else "<f4").tobytes()


def encode_counts(counts: NDArray[np.int64]) -> bytes | None:
    """Counts that are almost always zero: (row, count) pairs of the others, None if there are none."""
    rows = np.flatnonzero(counts)
    if not len(rows):
        return None
    return np.stack([rows.astype(np.int64), counts[rows].astype(np.int64)]).astype("<i8").tobytes()


def decode_counts(blob: Any, count: int, what: str) -> NDArray[np.int64]:
    """The reverse of `encode_counts`, dense."""
    dense = np.zeros(count, dtype=np.int64)
    if blob is None:
        return dense
    if not isinstance(blob, bytes) or len(blob) % 16:
        raise HistoryError(f"[History] {what}: expected pairs of integers, got a damaged row")
    rows, counts = np.frombuffer(blob, dtype="<i8").reshape(2, -1)
    if len(rows) and (rows.min() < 0 or rows.max() >= count):
        raise HistoryError(f"[History] {what}: a row number is out of range")
    dense[rows] = counts
    return dense


def read_json(text: Any, what: str) -> Any:
    """A JSON value from the file, or a HistoryError."""
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise HistoryError(f"[History] {what}: expected JSON, got a damaged value") from error
