"""Statistics of modules, combined from those of their parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradkern._util.names import layer_of
from gradkern.history.layout import Floats
from gradkern.history.recorded import Recorded


@dataclass(frozen=True)
class LayerColumns:
    """Statistics of modules, returned by `History.layers`: [T, L] arrays."""

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


def roots_of_mean_squares(
    rms: Floats, present: NDArray[np.bool_], sizes: NDArray[Any], groups: Mapping[str, NDArray[np.int64]]
) -> tuple[Floats, Floats]:
    """The rms of each module, from those of its parameters.

    Args:
        rms: [R, N] root mean squares.
        present: [R, N] which of them count.
        sizes: [1, N] or [R, N] elements of each parameter.
        groups: columns by module, see `groups_of`.

    Returns:
        [R, L] root mean squares, NaN where nothing counts; and [R, L] the number of elements that count.
    """
    found, elements = np.full((len(rms), len(groups)), np.nan), np.zeros((len(rms), len(groups)))
    sizes = np.broadcast_to(sizes, rms.shape)
    for layer, columns in enumerate(groups.values()):
        counts = present[:, columns]
        weights = np.where(counts, sizes[:, columns], 0)
        elements[:, layer] = weights.sum(axis=1)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.where(counts, rms[:, columns], 0.0).astype(np.float64) ** 2 * weights
        there = counts.any(axis=1)
        found[there, layer] = np.sqrt(squares.sum(axis=1)[there] / np.maximum(elements[there, layer], 1))
    return found, elements


def roll_up(history: Recorded, depth: int | None) -> LayerColumns:
    """Parameters rolled up to the modules that own them. A shared parameter counts once."""
    groups = groups_of(history.names, depth, history.repeated)
    present = history.has_grad & ~history.repeats
    rms, elements = roots_of_mean_squares(history.rms, present, history.numel_rows(), groups)

    def reduced(reduce: np.ufunc, values: NDArray[Any], initial: Any) -> NDArray[Any]:
        found = np.full((len(values), len(groups)), initial, dtype=values.dtype)
        for layer, columns in enumerate(groups.values()):
            found[:, layer] = reduce.reduce(values[:, columns], axis=1, initial=initial)
        return found

    has_grad = reduced(np.logical_or, present, False)
    largest = reduced(np.maximum, np.where(present, history.max_abs, 0.0), 0.0)
    return LayerColumns(
        names=tuple(groups),
        numel=np.array([history.numel[columns].sum() for columns in groups.values()], dtype=np.int64),
        rms=rms,
        l2_norm=rms * np.sqrt(elements),
        max_abs=np.where(has_grad, largest, np.nan),
        nonfinite=reduced(np.add, np.where(present, history.nonfinite, 0), 0),
        has_grad=has_grad,
    )
