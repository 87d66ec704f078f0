"""Bar charts made of block characters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII = " ...::::#"  # one for each of the nine levels


def fold(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Reduce a series to at most `width` values; each is the maximum of a stretch of the series.

    A stretch with an inf or NaN becomes NaN, so that it stays visible.
    """
    if len(values) <= width:
        return values
    edges = np.linspace(0, len(values), width + 1).astype(int)
    return np.array([_highest(values[a:b]) for a, b in itertools.pairwise(edges)])


def _highest(stretch: NDArray[np.float64]) -> float:
    return float(stretch.max()) if bool(np.isfinite(stretch).all()) else math.nan


def levels(values: Sequence[float], height: int) -> list[int | None]:
    """Bar heights in eighths of a row, from 1 to 8·height, on a log scale; None for inf and NaN."""
    finite = [v for v in values if math.isfinite(v) and v > 0]
    if not finite:
        return [None if not math.isfinite(v) else 0 for v in values]
    low, high = math.log10(min(finite)), math.log10(max(finite))
    room, top = (high - low) or 1.0, 8 * height
    flat = high == low
    return [
        None
        if not math.isfinite(v)
        else 0
        if v <= 0
        else top // 2
        if flat
        else 1 + round((math.log10(v) - low) / room * (top - 1))
        for v in values
    ]


def bars(values: Sequence[float], height: int, ascii_only: bool = False) -> list[str]:
    """Rows of text, top row first, one column for each value; inf and NaN are crosses in the top row."""
    glyphs, cross = (_ASCII, "x") if ascii_only else (_BLOCKS, "×")
    rows = []
    for row in range(height - 1, -1, -1):
        line = ""
        for level in levels(values, height):
            if level is None:
                line += cross if row == height - 1 else " "
            else:
                line += glyphs[max(0, min(8, level - 8 * row))]
        rows.append(line)
    return rows
