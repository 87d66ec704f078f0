"""Per-parameter columns of a history: layouts, [T, N] blocks, roll-up to modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradkern.monitor import store
from gradkern.monitor.store import HistoryError
from gradkern.names import layer_of

if TYPE_CHECKING:
    from gradkern.monitor.history import History

Floats = NDArray[np.floating[Any]]


#: What a layout may say of each parameter besides its size.
DETAILS = ("shape", "dtype", "trainable", "group", "kind")
#: Parameters of one run. More would be no model, but a file that is to use up the reader's memory.
MOST_NAMES = 2**20


@dataclass
class Layout:
    """A set of parameters, in the order in which a row's blobs list them."""

    names: tuple[str, ...]
    numel: NDArray[np.int64]
    first: NDArray[np.int64]
    """For each row the first row of the same parameter."""
    details: dict[str, list[Any]] = field(default_factory=dict)
    """DETAILS: a list each, one entry a row; None, or no list at all, where it is not known."""
    columns: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Where the rows stand among all names of the run."""

    @cached_property
    def inverse_roots(self) -> Floats:
        """[N] 1 / sqrt(numel): from an L2 norm to an rms."""
        return (1.0 / np.sqrt(np.maximum(self.numel, 1))).astype(np.float32)

    @cached_property
    def repeats(self) -> NDArray[np.bool_]:
        """[N] whether an earlier row is of the same parameter."""
        return self.first != np.arange(len(self.first))

    @cached_property
    def row_bytes(self) -> int:
        """Roughly what the statistics of one step hold."""
        return 24 * len(self.names) + 1024

    def key(self) -> tuple[Any, ...]:
        """Equal for equal sets of parameters."""
        return self.names, self.numel.tobytes(), self.first.tobytes(), repr(sorted(self.details.items()))

    def to_json(self) -> dict[str, Any]:
        base = {"names": list(self.names), "numel": self.numel.tolist(), "first": self.first.tolist()}
        return {**base, **self.details}

    @classmethod
    def from_json(cls, value: Any) -> Layout:
        """Checked: nothing of the file is believed."""
        if not isinstance(value, dict):
            raise HistoryError("[History] layout: expected an object, got a damaged value")
        names = value.get("names")
        if isinstance(names, list) and len(names) > MOST_NAMES:
            raise HistoryError(f"[History] layout: expected at most {MOST_NAMES} names, got {len(names)}")
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise HistoryError("[History] layout: expected a list of names, got a damaged value")
        if len(set(names)) != len(names):
            raise HistoryError("[History] layout: a name stands twice")
        arrays = []
        for key, top in (("numel", 2**62), ("first", len(names) - 1)):
            numbers: Any = value.get(key)
            good = isinstance(numbers, list) and len(numbers) == len(names)
            if not good or not all(type(n) is int and 0 <= n <= top for n in numbers):
                raise HistoryError(f"[History] layout: expected {len(names)} integers as {key}")
            arrays.append(np.array(numbers, dtype=np.int64))
        details = {
            key: value[key]
            for key in DETAILS
            if isinstance(value.get(key), list) and len(value[key]) == len(names)
        }
        return cls(tuple(names), arrays[0], arrays[1], details)

    def entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name, what is known of the parameter)."""
        for row, name in enumerate(self.names):
            known = {key: values[row] for key, values in self.details.items() if values[row] is not None}
            yield name, {"numel": int(self.numel[row]), **known}


class Columns:
    """The per-parameter columns of T rows; [T, N] arrays as `History` has them.

    Args:
        rows: T.
        numel: [1, N] or [T, N] elements of each parameter.
    """

    def __init__(self, rows: int, numel: NDArray[np.int64]) -> None:
        self._shape = (rows, numel.shape[1])
        self.numel = numel
        self.norm: Floats = np.full(self._shape, np.nan, dtype=np.float32)
        self.max_abs: Floats = self.norm.copy()
        self.l2_norm: Floats = self.norm
        self.has_grad = np.zeros(self._shape, dtype=bool)
        self.nonfinite = np.zeros(self._shape, dtype=np.int64)
        self.zeros: NDArray[np.int64] | None = None

    @cached_property
    def rms(self) -> Floats:
        """Root mean square, ``l2_norm / sqrt(numel)``; of all rows, once they are put."""
        return self.l2_norm / np.sqrt(np.maximum(self.numel, 1)).astype(self.l2_norm.dtype)

    def put(self, at: NDArray[np.int64], layout: Layout, found: Sequence[tuple[Any, ...]]) -> None:
        """Fill in the rows `at` (ascending), all of one layout, from the file's rows."""
        count = len(layout.names)
        where = self._where(at, layout)
        norm = _block([row[1] for row in found], count)
        self._widen(norm.dtype)
        with np.errstate(invalid="ignore"):
            absent = norm < 0  # -1: no gradient
        self.has_grad[where] = ~absent
        self.norm[where] = np.where(absent, np.nan, norm)
        self.max_abs[where] = np.where(absent, np.nan, _block([row[2] for row in found], count))
        self._put_l2(where, norm, absent, [row[3] for row in found], count)
        for row, values in zip(at.tolist(), found):
            what = f"row {values[0]}"
            if values[4] is not None:
                self.nonfinite[row, layout.columns] = store.decode_counts(values[4], count, what)
            if values[5] is not None:
                if self.zeros is None:
                    self.zeros = np.full(self._shape, -1, dtype=np.int64)
                self.zeros[row, layout.columns] = store.decode_counts(values[5], count, what)

    def _where(self, at: NDArray[np.int64], layout: Layout) -> Any:
        """An index for a block: slices where the block is one (much faster)."""
        plain = np.array_equal(layout.columns, np.arange(len(layout.columns)))
        if plain and len(at) and at[-1] - at[0] + 1 == len(at):
            return slice(int(at[0]), int(at[-1]) + 1), slice(0, len(layout.columns))
        return np.ix_(at, layout.columns)

    def _put_l2(
        self, where: Any, norm: Floats, absent: NDArray[np.bool_], blobs: list[Any], count: int
    ) -> None:
        if self.l2_norm is self.norm:
            if all(blob is None for blob in blobs):
                return
            self.l2_norm = self.norm.copy()
        rows = [n if blob is None else store.decode(blob, count, "l2_norm") for n, blob in zip(norm, blobs)]
        self.l2_norm[where] = np.where(absent, np.nan, np.stack(rows))

    def _widen(self, dtype: np.dtype[Any]) -> None:
        if dtype.itemsize == 8 and self.norm.dtype.itemsize == 4:
            same = self.l2_norm is self.norm
            self.norm, self.max_abs = self.norm.astype(np.float64), self.max_abs.astype(np.float64)
            self.l2_norm = self.norm if same else self.l2_norm.astype(np.float64)


def _block(blobs: list[Any], count: int) -> Floats:
    """[rows, count] from blobs; in one piece where they are alike."""
    if all(isinstance(blob, bytes) and len(blob) == 4 * count for blob in blobs):
        return np.frombuffer(b"".join(blobs), dtype="<f4").reshape(len(blobs), count)
    return np.stack([store.decode(blob, count, "vals") for blob in blobs])


@dataclass(frozen=True)
class LayerColumns:
    """Rows of modules: what `History.layers` returns. [T, L] arrays."""

    names: tuple[str, ...]
    numel: NDArray[np.int64]
    rms: Floats
    """Root mean square over the elements of the module's gradients."""
    l2_norm: Floats
    max_abs: Floats
    nonfinite: NDArray[np.int64]
    has_grad: NDArray[np.bool_]


def groups_of(
    names: Sequence[str], depth: int | None, repeated: frozenset[int]
) -> dict[str, NDArray[np.int64]]:
    """Columns by module, in order of first appearance; a parameter listed twice counts once."""
    members: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        columns = members.setdefault(layer_of(name, depth), [])
        if column not in repeated:
            columns.append(column)
    return {layer: np.array(columns, dtype=np.int64) for layer, columns in members.items()}


def roll_up(history: History, depth: int | None) -> LayerColumns:
    """Parameters rolled up to the modules that own them. A shared parameter counts once."""
    groups = groups_of(history.names, depth, history.repeated)
    shape = (len(history), len(groups))
    numel, once = history.numel_rows(), history.has_grad & ~history.repeats
    rms, norm, largest = (np.full(shape, np.nan) for _ in range(3))
    nonfinite, has_grad = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    for layer, columns in enumerate(groups.values()):
        present = once[:, columns]
        square = np.where(present, history.l2_norm[:, columns].astype(np.float64) ** 2, 0.0).sum(axis=1)
        size = np.where(present, numel[..., columns], 0).sum(axis=1)
        has_grad[:, layer] = present.any(axis=1)
        nonfinite[:, layer] = np.where(present, history.nonfinite[:, columns], 0).sum(axis=1)
        values = np.where(present, history.max_abs[:, columns], 0.0)
        there = has_grad[:, layer]
        norm[there, layer] = np.sqrt(square[there])
        rms[there, layer] = np.sqrt(square[there] / np.maximum(size[there], 1))
        largest[there, layer] = values.max(axis=1, initial=0.0)[there]
    sizes = np.array([history.numel[columns].sum() for columns in groups.values()], dtype=np.int64)
    return LayerColumns(tuple(groups), sizes, rms, norm, largest, nonfinite, has_grad)
