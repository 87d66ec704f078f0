"""`Heatmap`: the image that loggers get, log10 rms of parameters × steps, in bounded memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

COLUMNS = 256
ROWS = 1024

#: Dark blue to yellow, evenly spaced in lightness.
_ANCHORS = np.array(
    [
        (18, 8, 60),
        (68, 22, 118),
        (132, 38, 122),
        (196, 62, 98),
        (240, 114, 66),
        (252, 186, 70),
        (250, 252, 170),
    ],
    dtype=np.float64,
)
_MISSING = (224, 224, 224)
_NONFINITE = (0, 200, 255)


class Heatmap:
    """The rms of every parameter at up to 256 steps. When they are full, every other column is dropped and
    the stride doubles."""

    def __init__(self) -> None:
        self._position: dict[str, int] = {}
        self._columns: list[NDArray[np.float32]] = []
        self._stride, self._seen = 1, 0
        self.last_step = 0

    def add(self, step: int, names: tuple[str, ...], rms: NDArray[Any]) -> None:
        """Add a step: rms [N], NaN without a gradient, inf for one that is not finite."""
        self.last_step = step
        take = self._seen % self._stride == 0
        self._seen += 1
        if not take:
            return
        at = [self._position.setdefault(name, len(self._position)) for name in names]
        column = np.full(len(self._position), np.nan, dtype=np.float32)
        column[at] = rms
        self._columns.append(column)
        if len(self._columns) == COLUMNS:
            del self._columns[1::2]
            self._stride *= 2

    def matrix(self) -> NDArray[np.float32]:
        """[parameters, columns] log10 rms."""
        out = np.full((len(self._position), len(self._columns)), np.nan, dtype=np.float32)
        for i, column in enumerate(self._columns):
            out[: len(column), i] = column
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log10(out)

    def pixels(self) -> NDArray[np.uint8]:
        """The image, uint8 [H, W, 3]: one row per parameter, one column per step.

        There are at most 1,024 rows. With more parameters each row shows the largest of several neighbours,
        so that no exploding one is left out.
        """
        values = self.matrix() if self._position else np.zeros((1, 1), dtype=np.float32)
        neighbours = -(-len(values) // ROWS)
        values = np.fmax.reduceat(values, np.arange(0, len(values), neighbours), axis=0)
        small = colours(values)
        scale = max(1, 256 // len(small)), max(1, 512 // small.shape[1])
        return small.repeat(scale[0], axis=0).repeat(scale[1], axis=1)


def colours(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Colours [H, W, 3] of values [H, W], from the 2nd to the 98th percentile. NaN is grey, +inf cyan."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [2, 98]) if len(finite) else (0.0, 1.0)
    unit = np.clip(
        (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) / max(high - low, 1e-9), 0, 1
    )
    at = unit * (len(_ANCHORS) - 1)
    below = np.minimum(at.astype(int), len(_ANCHORS) - 2)
    part = (at - below)[..., None]
    pixels: NDArray[np.uint8] = (_ANCHORS[below] * (1 - part) + _ANCHORS[below + 1] * part).astype(np.uint8)
    pixels[np.isnan(values)] = _MISSING
    pixels[np.isposinf(values)] = _NONFINITE
    return pixels
