"""`Capture`: the values that the training thread passes to the writing thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gradkern.history.rows import AmendmentRow, Row
from gradkern.monitor.captures.transfer import HERE, Arriving, PinnedPool, send

#: The caller's numbers of a step by name; those on a device as tensors.
Extra = dict[str, float | Tensor]


class Capture(Protocol):
    """Values of one step on their way to the host."""

    @property
    def step(self) -> int: ...
    @property
    def arriving(self) -> Arriving:
        """Tells when `row` may be called."""
        ...

    @property
    def is_step(self) -> bool:
        """Whether this is the row of a step, and not periodic statistics, an event or the like."""
        ...

    def nbytes(self) -> int:
        """Roughly the memory it holds."""
        ...

    def row(self, presence: Presence) -> Row:
        """The row. Called once, by the writing thread, when the values have arrived."""
        ...


@dataclass
class Presence:
    """Which parameters have no gradient; computed again only when that changes."""

    _last: tuple[bool, ...] = ()
    _absent: NDArray[np.int64] | None = None

    def absent(self, has_grad: tuple[bool, ...]) -> NDArray[np.int64] | None:
        """Rows without a gradient; None if there are none."""
        if has_grad != self._last:
            rows = np.flatnonzero(~np.array(has_grad, dtype=bool))
            self._absent = rows if len(rows) else None
            self._last = has_grad
        return self._absent


class HostCapture:
    """A row whose values are on the host already."""

    arriving = HERE
    is_step = False

    def __init__(self, row: Row) -> None:
        self._row, self.step = row, row.step

    def nbytes(self) -> int:
        return 1024

    def row(self, presence: Presence) -> Row:
        return self._row


class AmendmentCapture:
    """Numbers of an earlier step."""

    is_step = False

    def __init__(self, step: int, values: Extra, pool: PinnedPool) -> None:
        self.step, self._values = step, values
        tensors = {f"extra {name}": value for name, value in values.items() if isinstance(value, Tensor)}
        self._names = list(tensors)
        self.arriving = send(list(tensors.values()), pool) if tensors else HERE

    def nbytes(self) -> int:
        return 1024

    def row(self, presence: Presence) -> Row:
        return AmendmentRow(self.step, extra_numbers(self._names, self.arriving.tensors, self._values))


def extra_numbers(names: list[str], arrived: list[Tensor], extra: Extra) -> dict[str, float]:
    """The caller's numbers on the host; a tensor of several elements gives one number for each.

    Args:
        names: of the tensors that arrived; those of `extra` are called "extra <name>".
    """
    values = dict(zip(names, arrived))
    found: dict[str, float] = {}
    for name, given in extra.items():
        if not isinstance(given, Tensor):
            found[name] = given
        elif given.numel() == 1:
            found[name] = float(values[f"extra {name}"])
        else:
            numbers = values[f"extra {name}"].reshape(-1).tolist()
            found.update({f"{name}/{i}": float(number) for i, number in enumerate(numbers)})
    return found
