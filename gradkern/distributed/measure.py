"""Measuring over ranks: local shards are read, and small rows travel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from gradkern.distributed.packed import (
    NONFINITE,
    ZEROS,
    Packed,
    decode_max,
    finish,
    finish_l2,
    merge,
    pack,
)
from gradkern.distributed.placements import Layout, counted_shards, layout_of
from gradkern.distributed.reduce import reduce_rows, reduce_total


class Distributed:
    """One list of gradients as the ranks see it together.

    Args:
        params: parameters, or tensors that stand for themselves if `grads` is the same list.
        grads: a gradient or None for each.
        process_group, pp_group, in_group, prefer_world: see `layout_of`.
        operation, names: for messages.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        *,
        process_group: dist.ProcessGroup | None = None,
        pp_group: dist.ProcessGroup | None = None,
        in_group: Callable[[int], bool] | None = None,
        prefer_world: bool = False,
        operation: str = "clip_grad_norm_",
        names: Sequence[str] | None = None,
    ) -> None:
        self.grads = grads
        self.operation, self.names = operation, names
        # Frozen parameters without gradient take no part; trainable ones do on every rank.
        self.rows = [i for i, (p, g) in enumerate(zip(params, grads)) if g is not None or p.requires_grad]
        carriers = [p if (g := grads[i]) is None else g for i, p in ((i, params[i]) for i in self.rows)]
        self.double = any(c.dtype in (torch.float64, torch.complex128) for c in carriers)
        inside = None if in_group is None else (lambda i: in_group(self.rows[i]))
        self.layout: Layout = layout_of(
            carriers, process_group, pp_group, prefer_world=prefer_world, in_group=inside
        )
        for domain in self.layout.domains:
            domain.positions = [self.rows[i] for i in domain.positions]
        self._counted = counted_shards(grads)

    @property
    def report(self) -> torch.dtype:
        return torch.float64 if self.double else torch.float32

    def _pack(
        self, positions: Sequence[int], norm_type: float, device: torch.device, **options: Any
    ) -> Packed:
        shards: list[Tensor | None] = [None] * len(self.grads)  # all positions: messages name them
        for i in positions:
            shards[i] = self._counted[i]
        return pack(shards, norm_type, device, operation=self.operation, names=self.names, **options)

    def total(self, norm_type: float) -> Tensor:
        """The norm of everything, 0-d, already reduced; one small all-reduce a mesh dimension."""
        parts = [
            reduce_total(self._pack(d.positions, norm_type, d.device), d.groups, norm_type)
            for d in self.layout.domains
        ]
        total = self._combine(parts, norm_type, reduce_total)
        return finish(total, norm_type)[0].to(self.report)

    def _combine(self, parts: list[Packed], norm_type: float, reduce: Callable[..., Packed]) -> Packed:
        if not parts:
            parts = [pack([], norm_type, torch.device("cpu"))]
        device = parts[0].sums.device
        total = merge([part.to(device) for part in parts], norm_type)
        pp_group = self.layout.pp_group
        if pp_group is not None:
            from gradkern.distributed.groups import group_device

            total = reduce(total.to(group_device(pp_group)), (pp_group,), norm_type).to(device)
        return total

    def columns(self, norm_type: float, count_zeros: bool, inv_scale: float | Tensor) -> dict[str, Any]:
        """What `_C.measure` returns, over all ranks, and "nonfinite_total".

        Rows of DTensors and totals are the same on every rank of their meshes; rows of plain
        tensors are this rank's own. `has_grad` is this rank's.
        """
        count = len(self.grads)
        parts, order, totals = [], [], []
        for d in self.layout.domains:
            local = self._pack(d.positions, norm_type, d.device, per_tensor=True, count_zeros=count_zeros)
            if d.kind == "mesh":
                reduced = reduce_rows(local.rows([*d.positions, count]), d.groups, norm_type)
                rows, total = Packed(reduced.sums[:-1], reduced.keys[:-1]), reduced.total
            else:
                rows, total = local.rows(d.positions), reduce_rows(local.total, d.groups, norm_type)
            order += d.positions
            parts.append(rows)
            totals.append(total)
        device = totals[0].sums.device if totals else torch.device("cpu")
        everything = self._combine(totals, norm_type, reduce_rows)
        missing = [i for i in range(count) if i not in set(order)]
        parts.append(pack([None] * len(missing), norm_type, device, per_tensor=True))
        table = Packed(
            torch.cat([p.sums.to(device) for p in parts]), torch.cat([p.keys.to(device) for p in parts])
        )
        place = sorted(range(count), key=[*order, *missing].__getitem__)
        return self._as_columns(table.rows(place), everything, norm_type, count_zeros, inv_scale)

    def _as_columns(
        self, rows: Packed, total: Packed, norm_type: float, count_zeros: bool, inv_scale: float | Tensor
    ) -> dict[str, Any]:
        norm = (finish(rows, norm_type) * inv_scale).to(self.report)
        l2 = norm if norm_type == 2.0 else (finish_l2(rows) * inv_scale).to(self.report)
        return {
            "norm": norm,
            "l2_norm": l2,
            "max_abs": (decode_max(rows) * inv_scale).to(self.report),
            "nonfinite": rows.sums[:, NONFINITE].long(),
            "zeros": rows.sums[:, ZEROS].long() if count_zeros else None,
            "total_norm": (finish(total, norm_type)[0] * inv_scale).to(self.report),
            "nonfinite_total": total.sums[0, NONFINITE],
            "has_grad": [g is not None for g in self.grads],
        }

    def offenders(self) -> list[tuple[int, int]]:
        """(position, count) of the non-finite elements that this rank counts. Synchronises."""
        packed = self._pack(self.rows, 2.0, torch.device("cpu"), per_tensor=True)
        counts = packed.sums[:-1, NONFINITE].tolist()
        return [(i, int(c)) for i, c in enumerate(counts) if c]

    def as_returned(self, total: Tensor) -> Tensor:
        """A replicated DTensor where all tensors share one mesh, as torch's function returns."""
        mesh = self.layout.single_mesh
        if mesh is None:
            return total
        return DTensor.from_local(total, mesh, [Replicate()] * mesh.ndim, run_check=False)
