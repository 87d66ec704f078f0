"""Per-step numbers reduced to a bounded number of bins."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Bins:
    """Consecutive runs of records: `edges[i]` to `edges[i + 1]` is bin i."""

    edges: I64
    first: I64
    """First step of each bin."""
    last: I64
    """Last step of each bin."""

    def __len__(self) -> int:
        return len(self.first)

    @classmethod
    def of(cls, steps: I64, limit: int) -> Bins:
        """At most `limit` bins of nearly equal numbers of records."""
        count = min(limit, len(steps))
        edges = np.linspace(0, len(steps), count + 1).astype(np.int64) if count else np.zeros(1, np.int64)
        return cls(edges, steps[edges[:-1]], steps[edges[1:] - 1] if count else steps[:0])

    def spread(self, values: F64) -> tuple[F64, F64, F64]:
        """Lowest, mean and highest finite value of each bin; NaN where there is none.

        inf and NaN are ignored, so that the curve continues. The page marks them separately.
        """
        finite = np.where(np.isfinite(values), values, np.nan)
        parts = [finite[a:b] for a, b in zip(self.edges[:-1], self.edges[1:])]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the mean of an empty bin is NaN
            low, mean, high = (np.array([f(p) for p in parts], dtype=np.float64) for f in _SPREAD)
        return low, mean, high

    def share(self, flags: NDArray[np.bool_], known: NDArray[np.bool_]) -> F64:
        """The share of records in each bin with the flag set, where it is known; NaN without any."""
        hits, total = self.count(flags & known), self.count(known)
        return np.divide(hits, total, out=np.full(len(self), np.nan), where=total > 0)

    def count(self, flags: NDArray[np.bool_]) -> I64:
        """The number of records in each bin with the flag set."""
        if not len(self):
            return np.zeros(0, dtype=np.int64)
        return np.add.reduceat(flags.astype(np.int64), self.edges[:-1])


_SPREAD = (np.nanmin, np.nanmean, np.nanmax)
