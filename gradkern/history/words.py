"""Short texts about a run: its first inf or NaN, and when its norms were measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from gradkern.history.recorded import Recorded

_PHASES = {"before_clip": "before clipping", "measured": "as measured", "after_clip": "after clipping"}


class FirstNonfinite(NamedTuple):
    """The first step with inf or NaN."""

    step: int
    name: str
    """The first parameter that has some."""
    more: int
    """Number of further parameters that have some in that step."""

    def __str__(self) -> str:
        return f"{self.name} and {self.more} more" if self.more else self.name


def first_nonfinite_of(history: Recorded) -> FirstNonfinite | None:
    """The first step with inf or NaN; None if there is none. Reads one row of the parameters."""
    bad = np.flatnonzero(~np.isfinite(history.total_norm))
    if not len(bad):
        return None
    row = int(bad[0])
    rows = np.flatnonzero(history.window(row, row + 1).nonfinite[0])
    name = history.names[rows[0]] if len(rows) else "only the total"
    return FirstNonfinite(int(history.steps[row]), name, max(len(rows) - 1, 0))


def phase_in_words(history: Recorded, rows: slice = slice(None)) -> str:
    """When the norms of some rows were measured; several phases if that changed."""
    found, first = np.unique(history.phase[rows], return_index=True)
    words = ", then ".join(_PHASES[str(phase)] for phase in found[np.argsort(first)])
    scaled = (history.inv_scale[rows] != 1).any()
    return (words or _PHASES["measured"]) + (", loss scale taken out" if scaled else "")
