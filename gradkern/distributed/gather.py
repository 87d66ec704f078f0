"""`StatsGatherer`: the statistics of pipeline stages or expert owners, gathered on one rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from gradkern.distributed.groups import group_device
from gradkern.params.arguments import check_group
from gradkern.params.stats import GradStats

#: norm, l2_norm, max_abs, nonfinite, zeros (-1 if not counted), has_grad.
_COLUMNS = 6


class StatsGatherer:
    """Gather the statistics of all ranks of a group on one rank, so that one monitor can record all of them.

    For pipeline stages and owners of experts, whose ranks have different parameters. Names and sizes are
    exchanged at construction. A step then costs one all-gather of a fixed shape.

    Args:
        names, numel: the rows of this rank, as in its GradStats.
        group: the ranks, one per pipeline stage. Default: all ranks.
        dst: the rank within the group that receives the result.

    Raises:
        TypeError, ValueError: `group` is not a process group of this rank, or `dst` is not a rank of it.

    Notes:
        Construction is a collective over the group.

    Examples:
        >>> gatherer = StatsGatherer(stats.names, stats.numel, pp_group)
        >>> whole = gatherer(clipper.clip_())  # GradStats on rank 0 of the group, None elsewhere
    """

    def __init__(
        self, names: Sequence[str], numel: Sequence[int], group: dist.ProcessGroup | None = None, dst: int = 0
    ) -> None:
        check_group("StatsGatherer", "group", group)
        self.group = group if group is not None else dist.group.WORLD
        assert self.group is not None
        size = dist.get_world_size(self.group)
        if not 0 <= dst < size:
            raise ValueError(f"[StatsGatherer] dst: expected a rank of the group, 0 to {size - 1}, got {dst}")
        self._is_destination = dist.get_rank(self.group) == dst
        self._names = tuple(names)
        layouts: list[tuple[tuple[str, ...], tuple[int, ...]]] = [((), ())] * size
        dist.all_gather_object(layouts, (tuple(names), tuple(numel)), group=self.group)
        self._rows = max(len(n) for n, _ in layouts)
        # If several ranks have a name (a tied embedding), the row of the first rank is used.
        owner: dict[str, tuple[int, int, int]] = {}
        for rank, (rank_names, sizes) in enumerate(layouts):
            for row, (name, n) in enumerate(zip(rank_names, sizes)):
                owner.setdefault(name, (rank, row, n))
        self._all_names = tuple(owner)
        self._numel = tuple(n for _, _, n in owner.values())
        self._places = [rank * self._rows + row for rank, row, _ in owner.values()]

    def __call__(self, stats: GradStats) -> GradStats | None:
        """Gather the rows of one step. A collective: every rank of the group has to call it.

        Returns:
            GradStats with the rows of all ranks on rank `dst`, None on the others.

        Raises:
            ValueError: the rows differ from those given at construction.
        """
        if stats.names != self._names:
            raise ValueError(
                f"[StatsGatherer] stats: its {len(stats.names)} rows are not the {len(self._names)} that the "
                "gatherer was built with; build another one if the parameters have changed"
            )
        sent = self._pack(stats)
        assert self.group is not None
        size = dist.get_world_size(self.group)
        received = [torch.empty_like(sent) for _ in range(size)]
        dist.all_gather(received, sent, group=self.group)
        if not self._is_destination:
            return None
        return self._unpack(torch.cat(received)[self._places].to(stats.norm.device), stats)

    def _pack(self, stats: GradStats) -> Tensor:
        table = torch.zeros(self._rows, _COLUMNS, dtype=torch.float64, device="cpu")
        table[: len(stats), 5] = torch.tensor(stats.has_grad, dtype=torch.float64, device="cpu")
        assert self.group is not None
        table = table.to(group_device(self.group), non_blocking=True)
        columns = (stats.norm, stats.l2_norm, stats.max_abs, stats.nonfinite)
        for column, values in enumerate(columns):
            table[: len(stats), column] = values.to(table.device).double()
        table[: len(stats), 4] = -1.0 if stats.zeros is None else stats.zeros.to(table.device).double()
        return table

    def _unpack(self, table: Tensor, stats: GradStats) -> GradStats:
        norm = table[:, 0].to(stats.norm.dtype)
        return dataclasses.replace(
            stats,
            names=self._all_names,
            numel=self._numel,
            has_grad=tuple(bool(x) for x in table[:, 5].tolist()),
            norm=norm,
            l2_norm=norm if stats.norm_type == 2.0 else table[:, 1].to(stats.norm.dtype),
            max_abs=table[:, 2].to(stats.norm.dtype),
            nonfinite=table[:, 3].long(),
            zeros=None if stats.zeros is None else table[:, 4].long(),
            first=tuple(range(len(self._all_names))),
            _factor=None,
            _wide_norm=None,
            _identities=(),
        )
