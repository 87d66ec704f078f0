"""A history as a table for other programs: one line a step and parameter that had a gradient."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradkern._util.optional import need
from gradkern.history import format

if TYPE_CHECKING:
    from gradkern.history.recorded import Recorded

_PIECE_VALUES = 1 << 18  # lines that are made at a time

#: Of the step, repeated on each of its lines; then of the parameter.
STEP_COLUMNS = ("step", "time", "loss", "lr", "total_norm", "clip_coef", "skipped", "phase", "inv_scale")
PARAM_COLUMNS = ("norm", "rms", "max_abs", "nonfinite", "zeros")
COLUMNS = (*STEP_COLUMNS, "param", *PARAM_COLUMNS)


def pieces(
    history: Recorded, spelled: Callable[[str], str] = lambda name: name
) -> Iterator[dict[str, NDArray[Any]]]:
    """The table in pieces, each a dict of columns; the whole is never in memory.

    `spelled` says how a parameter's name is written.
    """
    with format.reading(history.path):
        yield from _pieces(history, spelled)


def _pieces(history: Recorded, spelled: Callable[[str], str]) -> Iterator[dict[str, NDArray[Any]]]:
    names = np.array([_whole(spelled(name)) for name in history.names], dtype=object)
    at_once = max(1, _PIECE_VALUES // max(len(names), 1))
    scalars = {name: getattr(history, name) for name in ("steps", *STEP_COLUMNS[1:])}
    scalars["step"] = scalars.pop("steps")
    for first in range(0, len(history), at_once):
        end = min(first + at_once, len(history))
        columns = history.window(first, end)
        row, param = np.nonzero(columns.has_grad)
        zeros = np.full(columns.norm.shape, -1) if columns.zeros is None else columns.zeros
        piece = {name: scalars[name][first + row] for name in STEP_COLUMNS}
        piece["param"] = names[param]
        blocks = (columns.norm, columns.rms, columns.max_abs, columns.nonfinite, zeros)
        piece.update({name: block[row, param] for name, block in zip(PARAM_COLUMNS, blocks)})
        yield piece


def to_pandas(history: Recorded) -> Any:
    """See `History.to_pandas`."""
    pandas = need("pandas", "pandas", "monitor", "History.to_pandas")
    frames = [pandas.DataFrame(piece, columns=list(COLUMNS)) for piece in pieces(history)]
    return pandas.concat(frames, ignore_index=True) if frames else pandas.DataFrame(columns=list(COLUMNS))


def to_csv(history: Recorded, file: str | os.PathLike[str]) -> None:
    """See `History.to_csv`."""
    with open(file, "w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(COLUMNS)
        for piece in pieces(history, _harmless):
            writer.writerows(zip(*(piece[name].tolist() for name in COLUMNS)))


def to_parquet(history: Recorded, file: str | os.PathLike[str]) -> None:
    """See `History.to_parquet`."""
    arrow = need("pyarrow", "pyarrow", "parquet", "History.to_parquet")
    parquet = need("pyarrow.parquet", "pyarrow", "parquet", "History.to_parquet")
    text, real, count = arrow.string(), arrow.float64(), arrow.int64()
    kinds = {"step": count, "skipped": arrow.bool_(), "phase": text, "param": text}
    kinds.update({"nonfinite": count, "zeros": count})
    schema = arrow.schema([(name, kinds.get(name, real)) for name in COLUMNS])
    with parquet.ParquetWriter(os.fspath(file), schema) as writer:
        for piece in pieces(history):
            columns = [arrow.array(piece[name].tolist(), type=schema.field(name).type) for name in COLUMNS]
            writer.write_table(arrow.Table.from_arrays(columns, schema=schema))


def _harmless(name: str) -> str:
    """A name that a spreadsheet does not take for a formula."""
    return f"'{name}" if name[:1] in ("=", "+", "-", "@", "\t", "\r") else name


def _whole(name: str) -> str:
    """A name that can be encoded: half a pair of surrogates becomes an escape."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
