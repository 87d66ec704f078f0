"""`JointLayouts`: the layout of rows that are joined from those of several models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradkern.history.layout import DETAILS, Layout


class JointLayouts:
    """Joins layouts; the same object for the same layouts. Used by the writing thread."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], tuple[list[Layout], Layout]] = {}

    def of(self, layouts: Sequence[Layout]) -> Layout:
        """Their rows one after another. Names are distinct, because each model's have its prefix."""
        key = tuple(map(id, layouts))
        if key not in self._known:
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[key] = list(layouts), _joined(layouts)  # the list keeps the ids valid
        return self._known[key][1]


#: Joined layouts that are kept; each combination of parts, and each change of a model, has one.
_MOST = 64


def _joined(layouts: Sequence[Layout]) -> Layout:
    starts = np.cumsum([0, *(len(layout.names) for layout in layouts)])
    details = {}
    for key in DETAILS:
        if any(key in layout.details for layout in layouts):
            columns = [layout.details.get(key, [None] * len(layout.names)) for layout in layouts]
            details[key] = [entry for column in columns for entry in column]
    return Layout(
        tuple(name for layout in layouts for name in layout.names),
        np.concatenate([layout.numel for layout in layouts]),
        np.concatenate([layout.first + start for layout, start in zip(layouts, starts)]),
        details,
    )
