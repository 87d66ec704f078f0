"""Data for the page: matrices as base64 of 16-bit codes, and JSON that is safe inside a script element."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

#: Codes of a cell with nothing recorded, of a zero, of inf or NaN. The codes between are linear in log10.
NOTHING, ZERO, BAD = 0, 1, 65535
_LEVELS = 65532


def pack_matrix(values: Floats, bad: NDArray[np.bool_]) -> dict[str, Any]:
    """A matrix [rows, columns] of magnitudes as {"lo", "hi", "data"}: two bytes a cell.

    NaN in `values` means nothing recorded; cells where `bad` is True, and infinite ones, are marked
    as inf or NaN. The relative error of a magnitude is below (hi - lo) · 1.8e-5.
    """
    ordinary = np.isfinite(values) & (values > 0) & ~bad
    logs = np.full(values.shape, np.nan)
    np.log10(values, out=logs, where=ordinary)
    lo, hi = (float(logs[ordinary].min()), float(logs[ordinary].max())) if ordinary.any() else (0.0, 1.0)
    codes = np.zeros(values.shape, dtype="<u2")
    scaled = (logs[ordinary] - lo) * (_LEVELS / ((hi - lo) or 1.0))
    codes[ordinary] = np.rint(scaled).astype("<u2") + 2
    codes[values == 0] = ZERO
    codes[bad | np.isinf(values)] = BAD
    return {
        "lo": lo,
        "hi": hi if hi > lo else lo + 1.0,
        "data": base64.b64encode(codes.tobytes()).decode("ascii"),
    }


def plain(values: Any) -> list[Any]:
    """Floats for JSON: six digits, NaN as None, infinities as the text "Infinity"."""
    return [plain_number(float(value)) for value in values]


def plain_number(value: float) -> float | str | None:
    """One float for JSON; see `plain`."""
    if math.isnan(value):
        return None
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return float(f"{value:.6g}")


def json_in_script(value: Any) -> str:
    """JSON for a <script> element: nothing in it can end the element or open a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
