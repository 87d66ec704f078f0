"""`GroupStats`: the totals of the named groups of a clipper, created when they are first used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class GroupStats:
    """The totals of one named group of `GradClipper(groups=...)`. Tensors stay on the gradients' device."""

    names: tuple[str, ...]
    """Canonical names of its parameters."""
    total_norm: Tensor
    """Norm of order `norm_type` of the group's gradients, before clipping: 0-d."""
    factor: Tensor
    """0-d: the factor that the group's gradients were multiplied by, or the smallest of several factors."""
    threshold: float | Tensor | None = None
    """`GradStats.threshold` of the group's policy."""

    def cpu(self) -> GroupStats:
        """A copy whose tensors are on the CPU. Synchronises."""
        limit = self.threshold.cpu() if isinstance(self.threshold, Tensor) else self.threshold
        return GroupStats(self.names, self.total_norm.cpu(), self.factor.cpu(), limit)


class GroupTotals(NamedTuple):
    """The totals of all groups at one step, of which `GroupStats` are made when they are first used."""

    names: Sequence[str]
    members: Sequence[tuple[str, ...]]
    """Canonical names of the parameters of each group."""
    rows: Sequence[Any]
    """int64: the rows of each group, on the gradients' device."""
    norm: Tensor
    """[G]: before rounding."""
    threshold: Sequence[float | Tensor | None]
    row_threshold: Tensor | None = None
    """[N]: where this is a group's entry of `threshold`, the entries of its rows are meant."""

    def stats(self, factor: Tensor, dtype: torch.dtype) -> dict[str, GroupStats]:
        """The statistics of each group by name.

        Args:
            factor: 0-d or [N]: what gradients were multiplied by.
            dtype: that of norms and factors.
        """
        norms, by_row = self.norm.to(dtype).unbind(), self.row_threshold
        return {
            name: GroupStats(members, norm, _smallest(factor, rows).to(dtype), _of_rows(limit, by_row, rows))
            for name, members, rows, norm, limit in zip(
                self.names, self.members, self.rows, norms, self.threshold
            )
        }


def _smallest(factor: Tensor, rows: Tensor) -> Tensor:
    """The smallest factor of some rows, NaN if one is NaN, 1 if there are none."""
    if not len(rows):
        return factor.new_ones(())
    return factor[rows].amin() if factor.ndim else factor


def _of_rows(limit: float | Tensor | None, by_row: Tensor | None, rows: Tensor) -> float | Tensor | None:
    return by_row[rows] if by_row is not None and limit is by_row else limit
