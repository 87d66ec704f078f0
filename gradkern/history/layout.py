"""`Layout`: a set of parameters, in the order in which a row's blobs list them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradkern.history.format import HistoryError

Floats = NDArray[np.floating[Any]]

#: Details of each parameter that a layout may have.
DETAILS = ("shape", "dtype", "trainable", "group", "kind")
#: Largest number of parameters of a run, so that a hostile file cannot exhaust the reader's memory.
MOST_NAMES = 2**20


@dataclass
class Layout:
    """A set of parameters, in the order in which a row's blobs list them."""

    names: tuple[str, ...]
    numel: NDArray[np.int64]
    first: NDArray[np.int64]
    """For each row the first row of the same parameter."""
    details: dict[str, list[Any]] = field(default_factory=dict)
    """For each known entry of DETAILS a list, one entry per row; None where it is not known."""
    columns: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Positions of the rows among all names of the run."""

    @cached_property
    def inverse_roots(self) -> Floats:
        """[N] 1 / sqrt(numel), which turns an L2 norm into an rms."""
        return (1.0 / np.sqrt(np.maximum(self.numel, 1))).astype(np.float32)

    @cached_property
    def repeats(self) -> NDArray[np.bool_]:
        """[N] whether an earlier row belongs to the same parameter."""
        return self.first != np.arange(len(self.first))

    @cached_property
    def row_bytes(self) -> int:
        """Approximate memory of the statistics of one step."""
        return 24 * len(self.names) + 1024

    def key(self) -> tuple[Any, ...]:
        """Equal for equal sets of parameters."""
        return self.names, self.numel.tobytes(), self.first.tobytes(), repr(sorted(self.details.items()))

    def to_json(self) -> dict[str, Any]:
        base = {"names": list(self.names), "numel": self.numel.tolist(), "first": self.first.tolist()}
        return {**base, **self.details}

    @classmethod
    def from_json(cls, value: Any) -> Layout:
        """Build a layout from the file, and check everything.

        Raises:
            HistoryError: a value is damaged.
        """
        if not isinstance(value, dict):
            raise HistoryError("[History] layout: damaged: expected an object")
        names = value.get("names")
        if isinstance(names, list) and len(names) > MOST_NAMES:
            raise HistoryError(f"[History] layout: expected at most {MOST_NAMES} names, got {len(names)}")
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise HistoryError("[History] layout: damaged: expected a list of names")
        if len(set(names)) != len(names):
            raise HistoryError("[History] layout: a name appears twice")
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
        """(name, details) of each parameter."""
        for row, name in enumerate(self.names):
            known = {key: values[row] for key, values in self.details.items() if values[row] is not None}
            yield name, {"numel": int(self.numel[row]), **known}
