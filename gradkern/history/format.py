"""Values of a run's file: flags, blobs and JSON, and errors that name the file.

Nothing read from the file is trusted: its tables must be those of its version (no trigger, no view), the
length of every blob is checked, and nothing is executed or unpickled.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DATABASE = "history.db"
BUSY_SECONDS = 5.0

# Bits of steps.flags. SQLite stores NaN as NULL, so a bit says whether there is a value.
HAS_LOSS = 1
HAS_COEF = 2
SKIPPED = 4
PHASE_SHIFT = 4  # two bits: an index into PHASES
PHASES = ("before_clip", "measured", "after_clip")

#: Bin b counts magnitudes in [2**e, 2**(e+1)); the first bin also everything smaller except zero, the last
#: everything larger. Zero, NaN and inf are not counted.
EXPONENTS = tuple(range(-60, 20))

#: The largest magnitude that rounds to zero in each number format: half the smallest subnormal (ties go to
#: even, that is to zero).
FORMATS = {"fp16": 2.0**-25, "bf16": 2.0**-134, "fp8_e4m3": 2.0**-10, "fp8_e5m2": 2.0**-17}

_F4, _F8 = np.dtype("<f4"), np.dtype("<f8")


class HistoryError(RuntimeError):
    """A run's file cannot be read or written; the message names the file."""


#: What a command says if its argument is not a run.
RUN_HINT = "RUN is the run_dir given to GradMonitor (with all_ranks, a rank<N> in it): it holds a history.db."


def as_folder(run_dir: str | os.PathLike[str], operation: str) -> Path:
    """Check the argument `run_dir` of an operation.

    Raises:
        TypeError: it is not a path.
    """
    if not isinstance(run_dir, (str, os.PathLike)):
        raise TypeError(f"[{operation}] run_dir: expected the path of a folder, got {type(run_dir).__name__}")
    return Path(run_dir)


def runs_in_words(folder: Path) -> str:
    """A hint if there are runs in folders below this one: those of several ranks, or any; else empty."""
    files = [*folder.glob(f"*/{DATABASE}"), *folder.glob(f"*/rank*/{DATABASE}")]
    found = sorted(
        (str(file.parent.relative_to(folder)) for file in files), key=lambda name: (len(name), name)
    )
    if not found:
        return ""
    ranks = all(re.fullmatch(r"rank\d+", name) for name in found)
    most = 4 if ranks else 12
    more = f", … ({len(found)} in all)" if len(found) > most else ""
    told = "Each rank has its own run in there" if ranks else "There are runs in there"
    return f"{told}; give one of them as RUN: {', '.join(found[:most])}{more}."


def _explain(error: sqlite3.Error, file: Path, operation: str) -> str:
    text = str(error)
    if "not a database" in text or "malformed" in text:
        return f"[{operation}] {str(file)!r}: the file is corrupt ({text}); it is left as it is: move it away"
    if "readonly" in text or "unable to open" in text:
        return f"[{operation}] {str(file)!r}: the folder or the file cannot be written ({text})"
    if "locked" in text:
        return f"[{operation}] {str(file)!r}: another process that writes to it holds it ({text}); try again"
    return f"[{operation}] {str(file)!r}: {text}"


def explain(error: sqlite3.Error, file: Path, operation: str) -> HistoryError:
    """The HistoryError for an error of SQLite's; names the file."""
    return HistoryError(_explain(error, file, operation))


@contextlib.contextmanager
def reading(file: Path, operation: str = "History") -> Iterator[None]:
    """Turn errors about the content of a file into a HistoryError that names the file.

    A damaged file can make SQLite return values of any type and size.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise explain(error, file, operation) from error
    except UnicodeError as error:  # SQLite's own message quotes the damage
        raise explain(sqlite3.DatabaseError("malformed"), file, operation) from error
    except MemoryError as error:
        raise HistoryError(
            f"[{operation}] {str(file)!r}: too large for this machine's memory; use History.window instead"
        ) from error
    except HistoryError as error:
        if str(file) in str(error) or repr(str(file.parent)) in str(error):
            raise
        raise HistoryError(f"{error} ({str(file)!r})") from error
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise HistoryError(f"[{operation}] {str(file)!r}: a damaged row: {error}") from error


@contextlib.contextmanager
def making(folder: Path) -> Iterator[None]:
    """Turn errors of the file system into a HistoryError that names the run's folder."""
    try:
        yield
    except OSError as error:
        raise HistoryError(f"[GradMonitor] run_dir {str(folder)!r}: cannot be written: {error}") from error


def decode(blob: Any, count: int, what: str) -> NDArray[Any]:
    """A column of `count` reals: float32, or float64 where the blob is twice as long."""
    if not isinstance(blob, bytes) or len(blob) not in (4 * count, 8 * count):
        raise HistoryError(f"[History] {what}: damaged: expected {count} numbers")
    wide = count > 0 and len(blob) == 8 * count
    return np.frombuffer(blob, dtype="<f8" if wide else "<f4")


def encode(values: NDArray[Any]) -> bytes:
    """The blob of a column, float32 or float64 as it is."""
    if values.dtype in (_F4, _F8):
        return values.tobytes()
    return values.astype("<f8" if values.dtype == np.float64 else "<f4").tobytes()


def encode_counts(counts: NDArray[np.int64]) -> bytes | None:
    """The blob of sparse counts: (row, count) pairs of those that are not zero. None if all are zero."""
    rows = np.flatnonzero(counts)
    if not len(rows):
        return None
    return np.stack([rows.astype(np.int64), counts[rows].astype(np.int64)]).astype("<i8").tobytes()


def decode_counts(blob: Any, count: int, what: str) -> NDArray[np.int64]:
    """The dense counts that `encode_counts` encoded."""
    dense = np.zeros(count, dtype=np.int64)
    if blob is None:
        return dense
    if not isinstance(blob, bytes) or len(blob) % 16:
        raise HistoryError(f"[History] {what}: damaged: expected pairs of integers")
    rows, counts = np.frombuffer(blob, dtype="<i8").reshape(2, -1)
    if len(rows) and (rows.min() < 0 or rows.max() >= count):
        raise HistoryError(f"[History] {what}: a row number is out of range")
    dense[rows] = counts
    return dense


def write_json(value: Any) -> str:
    """A value as standard JSON: NaN and infinities become null.

    Raises:
        TypeError, ValueError: it is not a JSON value.
    """
    return json.dumps(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(text: Any, what: str) -> Any:
    """Parse JSON from the file.

    Raises:
        HistoryError: it is not JSON.
    """
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise HistoryError(f"[History] {what}: damaged: expected JSON") from error
