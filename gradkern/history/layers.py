"""Parameters rolled up to the modules that own them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradkern._util.names import layer_of
from gradkern.history.layout import Floats
from gradkern.history.recorded import Recorded


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


def roll_up(history: Recorded, depth: int | None) -> LayerColumns:
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
