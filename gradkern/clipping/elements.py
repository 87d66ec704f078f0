"""Apply the policies that change single elements, after gradients have been scaled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradkern.clipping.first_step import copied
from gradkern.clipping.policies import ElementPolicy, Policy
from gradkern.params.stats import GradStats


@dataclass
class _Part:
    """One policy and its rows."""

    policy: ElementPolicy
    rows: Tensor
    """[R]: positions of its rows."""
    first: list[int] | None
    """The rows without parameters that are listed before; None means all rows of the clipper."""
    counted: Tensor
    """[P]: the same rows; all of them if `first` is None."""
    place: Tensor
    """[R]: the position of each row's parameter in `counted`."""
    names: tuple[str, ...]

    def move_to(self, device: torch.device) -> None:
        """Copy the positions, once: a step neither waits for a copy nor makes one in a CUDA graph."""
        if self.rows.device != device:
            for name in ("rows", "counted", "place"):
                setattr(self, name, copied(getattr(self, name), device))


class ElementParts:
    """The element-wise policies of a clipper, for one list of parameters.

    Args:
        policies: the policies with their rows.
        names: the names of all rows.
        first: for each row, the first row of the same parameter.
    """

    def __init__(
        self,
        policies: Sequence[tuple[Policy | None, Sequence[int]]],
        names: tuple[str, ...],
        first: tuple[int, ...],
    ) -> None:
        self._parts = [
            _part(policy, rows, names, first)
            for policy, rows in policies
            if isinstance(policy, ElementPolicy)
        ]

    def __bool__(self) -> bool:
        return bool(self._parts)

    def check(self, params: Sequence[Tensor]) -> None:
        """Let the policies check their gradients, before any gradient is changed."""
        for part in self._parts:
            counted = params if part.first is None else [params[row] for row in part.first]
            part.policy.check("GradClipper.clip_", counted, part.names)

    def apply_(
        self,
        params: Sequence[Tensor],
        shards: Sequence[Tensor | None] | None,
        stats: GradStats,
        factor: Tensor,
        l2_norm: Callable[[], Tensor],
    ) -> Tensor:
        """Let the policies change their gradients.

        Args:
            shards: the tensors to write to; None means the gradients themselves.
            factor: 0-d or [N]: the factor that gradients have been multiplied by already.
            l2_norm: measures the L2 norms of the gradients as they are now.

        Returns:
            [N] float64: the ratio of each gradient's L2 norms after and before.
        """
        factor = factor.double().expand(len(stats)).clone()
        for part in self._parts:
            first = part.first
            part.move_to(factor.device)
            ratio = part.policy.apply_(
                "GradClipper.clip_",
                params if first is None else [params[row] for row in first],
                shards if first is None or shards is None else [shards[row] for row in first],
                part.names,
            )
            if ratio is None:
                ratio = torch.where(stats.l2_norm == 0, 1.0, l2_norm().double() / stats.l2_norm.double())
                ratio = ratio[part.counted]
            rows = part.rows
            changed = factor[rows] * ratio.to(factor.device)[part.place]
            factor[rows] = torch.where(factor[rows] == 0, 0.0, changed)  # what was zeroed had NaN before
        return factor


def _part(
    policy: ElementPolicy, rows: Sequence[int], names: tuple[str, ...], first: tuple[int, ...]
) -> _Part:
    counted = [row for row in rows if first[row] == row]
    place = {row: i for i, row in enumerate(counted)}
    own = [place[first[row]] for row in rows]
    return _Part(
        policy,
        torch.tensor(rows, dtype=torch.int64, device="cpu"),
        None if len(counted) == len(names) else counted,
        torch.tensor(counted, dtype=torch.int64, device="cpu"),
        torch.tensor(own, dtype=torch.int64, device="cpu"),
        tuple(names[row] for row in counted),
    )
