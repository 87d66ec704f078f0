"""`Spikes`: norms far above the usual, where a policy clipped or skipped. Runs on the writing thread."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradkern.monitor.events.decided import MOST_NAMES, Decided, PartRow

#: A spike is this many times the median of the latest norms, of which at least FEW are known: the numbers of
#: the diagnosis `gradient_spike`.
TIMES, WINDOW, FEW = 10.0, 64, 16

Floats = NDArray[np.floating[Any]]


class Spikes:
    """Finds spikes, and keeps the latest norms of every model and group for it."""

    def __init__(self) -> None:
        self._latest: dict[tuple[str, ...], deque[float]] = {}
        self._rows: dict[tuple[str, ...], deque[Floats]] = {}

    def of(self, given: PartRow, decided: list[Decided]) -> Iterator[dict[str, Any]]:
        """The spikes of a step, as data of events.

        `ZClip` and `SkipOutliers` say themselves what an outlier is. `AdaGC` limits every gradient by itself,
        so that single gradients are compared with their usual norms.
        """
        for one in decided:
            if not math.isfinite(one.norm):
                continue
            key = tuple(one.where.values())
            if one.policy in ("ZClip", "SkipOutliers"):
                spike = _of_policy(one)
            else:
                spike = self._of_total(key, given, one)
            if spike is None and one.policy == "AdaGC":
                spike = self._of_rows(key, given, one)
            if spike is not None:
                yield {**one.where, **spike}

    def _of_total(self, key: tuple[str, ...], given: PartRow, one: Decided) -> dict[str, Any] | None:
        latest = self._latest.setdefault(key, deque(maxlen=WINDOW))
        acted = given.row.skipped or (one.factor is not None and one.factor < 1)
        usual = statistics.median(latest) if acted and len(latest) >= FEW else 0.0
        latest.append(one.norm)
        return {"norm": one.norm, "usual": usual} if one.norm > TIMES * usual > 0 else None

    def _of_rows(self, key: tuple[str, ...], given: PartRow, one: Decided) -> dict[str, Any] | None:
        rows, factor = given.rows_of(one), given.row.factor
        norm = given.row.norm[rows]
        latest = self._rows.setdefault(key, deque(maxlen=WINDOW))
        if latest and len(latest[0]) != len(norm):
            latest.clear()
        before = np.stack(latest) if len(latest) >= FEW else None
        latest.append(norm)
        if before is None or factor is None:
            return None
        far = np.flatnonzero((factor[rows] < 1) & (norm > TIMES * before.min(axis=0)))  # few are left
        usual = np.median(before[:, far], axis=0)
        above = (norm[far] > TIMES * usual) & (usual > 0)
        far, usual = far[above], usual[above]
        if not len(far):
            return None
        order = np.argsort(-norm[far], kind="stable")
        names = [given.row.layout.names[rows[i]] for i in far[order][:MOST_NAMES].tolist()]
        top = order[0]
        return {"norm": float(norm[far[top]]), "usual": float(usual[top]), "parameters": names}


def _of_policy(one: Decided) -> dict[str, Any] | None:
    """A norm that the policy itself regards as an outlier. `ZClip` has another threshold than its `max_norm`
    then."""
    if not one.exceeds or (one.policy == "ZClip" and one.threshold == one.settings.get("max_norm", math.inf)):
        return None
    return {"norm": one.norm, "limit": one.threshold}
