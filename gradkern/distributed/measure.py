"""Measure over ranks: each rank reads its local shards, and small rows are reduced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from gradkern.distributed.groups import group_device
from gradkern.distributed.packed import (
    NONFINITE,
    Packed,
    as_measured,
    by_group,
    finish,
    join,
    merge,
)
from gradkern.distributed.packing import pack, without_repeats
from gradkern.distributed.placements import Domain, counts_here, local_shard, resolve_partial
from gradkern.distributed.plan import RankPlan
from gradkern.distributed.reduce import reduce_rows, reduce_total
from gradkern.kernels.measured import Measured
from gradkern.params.arguments import check_group


class Distributed:
    """One list of gradients, over all ranks.

    Args:
        params: the parameters, or the same list as `grads`.
        grads: a gradient or None for each parameter.
        plan: the plan of an earlier call, used if it still fits.
        operation, names: for messages.
        groups: arguments of `RankPlan`.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        *,
        plan: RankPlan | None = None,
        operation: str = "clip_grad_norm_",
        names: Sequence[str] | None = None,
        **groups: Any,
    ) -> None:
        self.grads = grads
        self.operation, self.names = operation, names
        for key in ("process_group", "pp_group"):
            check_group(operation, key, groups.get(key))
        held = None if plan is None else plan.held(params, grads)
        if plan is None or held is None:
            plan = RankPlan(params, grads, **groups)
            held = [None if g is None else local_shard(g) for g in grads]
        self.plan = plan
        #: The tensors that this rank holds, to which in-place operations write.
        self.held: list[Tensor | None] = held
        self._counted = [h if c else None for h, c in zip(held, plan.counted)]
        added: dict[int, Tensor | None] = {}  # a gradient listed twice stays one tensor
        for position in plan.partial:
            grad = grads[position]
            if id(grad) not in added:
                added[id(grad)] = _resolved(grad)  # a collective: also on ranks that do not count the sum
            self._counted[position] = added[id(grad)] if plan.counted[position] else None

    @property
    def report(self) -> torch.dtype:
        return torch.float64 if self.plan.double else torch.float32

    def _pack(self, domain: Domain, norm_type: float, **options: Any) -> Packed:
        shards = self._counted
        if len(domain.positions) != len(shards):
            shards = [None] * len(self.grads)  # keep all positions, which messages mention
            for i in domain.positions:
                shards[i] = self._counted[i]
        return pack(shards, norm_type, domain.device, operation=self.operation, names=self.names, **options)

    def total(self, norm_type: float) -> Tensor:
        """The norm of all gradients on all ranks, 0-d float64. One small all-reduce per mesh dimension."""
        parts = [reduce_total(self._pack(d, norm_type), d.groups, norm_type) for d in self.plan.domains.each]
        total = self._combine(parts, norm_type, reduce_total)
        return finish(total, norm_type)[0]

    def _combine(
        self, parts: list[Packed], norm_type: float, reduce: Callable[..., Packed], rows: int = 1
    ) -> Packed:
        if not parts:
            parts = [join([pack([], norm_type, torch.device("cpu"))] * rows)]
        device = parts[0].sums.device
        total = merge([part.to(device) for part in parts], norm_type)
        pp_group = self.plan.domains.pp_group
        if pp_group is not None:
            total = reduce(total.to(group_device(pp_group)), (pp_group,), norm_type).to(device)
        return total

    def measured(
        self,
        norm_type: float,
        count_zeros: bool,
        inv_scale: float | Tensor,
        groups: Sequence[Sequence[int]] = (),
    ) -> Measured:
        """Statistics over all ranks.

        Rows of DTensors and totals are the same on every rank of their meshes. Rows of plain tensors and
        `has_grad` are this rank's.

        Args:
            groups: the positions of each named group.
        """
        parts, totals = [], []
        for d in self.plan.domains.each:
            rows, total = self._domain_rows(d, norm_type, count_zeros, groups)
            parts.append(rows)
            totals.append(total)
        device = totals[0].sums.device if totals else torch.device("cpu")
        everything = self._combine(totals, norm_type, reduce_rows, len(groups) + 1)
        if self.plan.missing:
            parts.append(pack([None] * len(self.plan.missing), norm_type, device, per_tensor=True).upto(-1))
        if not parts:
            parts.append(pack([], norm_type, device, per_tensor=True).upto(-1))
        table = parts[0]
        if len(parts) > 1:
            sums, keys = zip(*(part.to(device) for part in parts))
            table = Packed(torch.cat(sums), torch.cat(keys))
        if self.plan.place is not None:
            table = table.rows(self.plan.place)
        return as_measured(table, everything, self.grads, self.report, norm_type, count_zeros, inv_scale)

    def _domain_rows(
        self, d: Domain, norm_type: float, count_zeros: bool, groups: Sequence[Sequence[int]]
    ) -> tuple[Packed, Packed]:
        """For one domain, over its ranks: its rows; and the totals of each named group and of the domain."""
        local = self._pack(d, norm_type, per_tensor=True, count_zeros=count_zeros)
        here = set(d.positions)
        members = [[i for i in group if i in here] for group in without_repeats(self._counted, groups)]
        totals = join([by_group(local, members, norm_type), local.total])
        if len(d.positions) != len(self.grads):
            local = local.rows([*d.positions, len(self.grads)])
        if d.kind != "mesh":
            return local.upto(-1), reduce_rows(totals, d.groups, norm_type)
        reduced = reduce_rows(join([local.upto(-1), totals]), d.groups, norm_type)
        rows = len(d.positions)
        return reduced.upto(rows), Packed(reduced.sums[rows:], reduced.keys[rows:])

    def nonfinite_parameters(self) -> list[tuple[int, int]]:
        """The position of each gradient with inf or NaN, and how many such elements this rank counts.
        Synchronises."""
        everything = Domain("local", (), torch.device("cpu"), positions=list(range(len(self.grads))))
        counts = self._pack(everything, 2.0, per_tensor=True).sums[:-1, NONFINITE].tolist()
        return [(i, int(c)) for i, c in enumerate(counts) if c]

    def as_returned(self, total: Tensor) -> Tensor:
        """The total as the drop-in functions return it: as in torch, a replicated DTensor if all tensors
        share one mesh."""
        mesh = self.plan.domains.single_mesh
        if mesh is None:
            return total
        return DTensor.from_local(total, mesh, [Replicate()] * mesh.ndim, run_check=False)


def _resolved(grad: Tensor | None) -> Tensor | None:
    """The part of a Partial gradient that this rank counts, after its terms are added."""
    if not isinstance(grad, DTensor):
        return None
    added = resolve_partial(grad)
    return local_shard(added) if counts_here(added.device_mesh, added.placements) else None
