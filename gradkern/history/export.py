"""A run as a long table for other programs: one line for each step and parameter that had a gradient.

The table is an Arrow stream, made a piece at a time; CSV, Parquet and pandas are written from it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradkern._util.optional import need
from gradkern.history import format

if TYPE_CHECKING:
    from gradkern.history.recorded import Recorded

#: Lines that are made at a time.
_PIECE = 1 << 18

#: Of the step, repeated on each of its lines; then of the parameter. The caller's own numbers follow, as
#: "extra/<name>".
STEP_COLUMNS = ("step", "time", "loss", "lr", "total_norm", "clip_coef", "skipped", "phase", "inv_scale")
PARAM_COLUMNS = ("norm", "rms", "max_abs", "nonfinite", "zeros")
COLUMNS = (*STEP_COLUMNS, "param", *PARAM_COLUMNS)


def arrow_reader(history: Recorded, operation: str) -> Any:
    """The table as a `pyarrow.RecordBatchReader`; the whole is never in memory.

    Raises:
        ImportError: pyarrow is not installed.
    """
    arrow = need("pyarrow", "pyarrow", "export", operation)
    schema = _schema(arrow, history)
    return arrow.RecordBatchReader.from_batches(schema, _batches(arrow, schema, history))


def to_arrow(history: Recorded) -> Any:
    """See `History.to_arrow`."""
    return arrow_reader(history, "History.to_arrow").read_all()


def to_pandas(history: Recorded) -> Any:
    """See `History.to_pandas`."""
    need("pandas", "pandas", "export", "History.to_pandas")
    return arrow_reader(history, "History.to_pandas").read_pandas()


def to_csv(history: Recorded, file: str | os.PathLike[str]) -> None:
    """See `History.to_csv`."""
    reader = arrow_reader(history, "History.to_csv")
    arrow = need("pyarrow", "pyarrow", "export", "History.to_csv")
    csv = need("pyarrow.csv", "pyarrow", "export", "History.to_csv")
    schema = arrow.schema([(f.name, _as_text(arrow, f.type)) for f in reader.schema])
    with csv.CSVWriter(os.fspath(file), schema) as writer:
        for batch in reader:
            table = arrow.Table.from_batches([batch]).cast(schema)
            at = schema.get_field_index("param")
            names = arrow.array([_harmless(name) for name in table["param"].to_pylist()], arrow.string())
            writer.write_table(table.set_column(at, "param", names))


def to_parquet(history: Recorded, file: str | os.PathLike[str]) -> None:
    """See `History.to_parquet`."""
    reader = arrow_reader(history, "History.to_parquet")
    parquet = need("pyarrow.parquet", "pyarrow", "export", "History.to_parquet")
    with parquet.ParquetWriter(os.fspath(file), reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)


def _schema(arrow: Any, history: Recorded) -> Any:
    text = arrow.dictionary(arrow.int32(), arrow.string())
    real, count = arrow.float64(), arrow.int64()
    kinds = {"step": count, "skipped": arrow.bool_(), "phase": text, "param": text}
    kinds.update({"nonfinite": count, "zeros": count})
    names = [*COLUMNS, *(_whole(f"extra/{name}") for name in history.extra)]
    return arrow.schema([(name, kinds.get(name, real)) for name in names])


def _batches(arrow: Any, schema: Any, history: Recorded) -> Iterator[Any]:
    names = arrow.array([_whole(name) for name in history.names], arrow.string())
    phases = arrow.array(list(format.PHASES), arrow.string())
    codes = {phase: code for code, phase in enumerate(format.PHASES)}
    with format.reading(history.path):
        phase = np.array([codes[name] for name in history.phase.tolist()], dtype=np.int32)
        of_steps: dict[str, NDArray[Any]] = {"step": history.steps, "phase": phase}
        of_steps.update({name: getattr(history, name) for name in STEP_COLUMNS if name not in of_steps})
        of_steps.update({_whole(f"extra/{name}"): values for name, values in history.extra.items()})
        texts = {"param": names, "phase": phases}
        for columns in _pieces(history, of_steps):
            arrays = [
                arrow.DictionaryArray.from_arrays(columns[name], texts[name])
                if name in texts
                else arrow.array(columns[name], schema.field(name).type)
                for name in schema.names
            ]
            yield arrow.RecordBatch.from_arrays(arrays, schema=schema)


def _pieces(history: Recorded, of_steps: dict[str, NDArray[Any]]) -> Iterator[dict[str, NDArray[Any]]]:
    """The columns of some steps at a time; of "param" the positions in `History.names`."""
    at_once = max(1, _PIECE // max(len(history.names), 1))
    for first in range(0, len(history), at_once):
        columns = history.window(first, min(first + at_once, len(history)))
        row, param = np.nonzero(columns.has_grad)
        zeros = np.full(columns.norm.shape, -1) if columns.zeros is None else columns.zeros
        blocks = (columns.norm, columns.rms, columns.max_abs, columns.nonfinite, zeros)
        piece = {name: values[first + row] for name, values in of_steps.items()}
        piece["param"] = param.astype(np.int32)
        piece.update({name: block[row, param] for name, block in zip(PARAM_COLUMNS, blocks)})
        yield piece


def _as_text(arrow: Any, kind: Any) -> Any:
    return arrow.string() if arrow.types.is_dictionary(kind) else kind


def _harmless(name: str) -> str:
    """A name that a spreadsheet does not take for a formula."""
    return f"'{name}" if name[:1] in ("=", "+", "-", "@", "\t", "\r") else name


def _whole(name: str) -> str:
    """A name that UTF-8 can encode: half a pair of surrogates becomes an escape."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
