"""Norms of groups of rows, computed from the norms of the rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradkern.kernels.torch_ops import power_norm


class RowGroups:
    """Rows gathered by group through a padded index matrix, so that sums run in a fixed order.

    Args:
        groups: the rows of each group.
        rows: how many rows there are in all; this index stands for the padding.
        device: where the rows' values are.
    """

    def __init__(self, groups: list[list[int]], rows: int, device: torch.device) -> None:
        width = max((len(g) for g in groups), default=0) or 1
        padded = [g + [rows] * (width - len(g)) for g in groups]
        self.index = torch.tensor(padded, dtype=torch.int64, device="cpu").reshape(len(groups), width)
        self.index = self.index.to(device, non_blocking=True)
        empty = torch.tensor([not g for g in groups], dtype=torch.bool, device="cpu")
        self.empty = empty.to(device, non_blocking=True)

    def gather(self, values: Tensor, neutral: float) -> Tensor:
        """The values of each group: [groups, width], padded with `neutral`."""
        return torch.cat([values, values.new_full((1,), neutral)])[self.index]

    def norm(self, norms: Tensor, norm_type: float) -> Tensor:
        """The norm of each group: [groups]. 0 for an empty group.

        Args:
            norms: [rows], of order `norm_type`.
        """
        wide = norms if norms.device.type == "mps" else norms.double()
        combined = norm_of_norms(self.gather(wide, math.inf if norm_type < 0 else 0.0), norm_type)
        return (torch.where(self.empty, 0.0, combined) if norm_type < 0 else combined).to(norms.dtype)


def norm_of_norms(matrix: Tensor, norm_type: float) -> Tensor:
    """[L]: for each row of norms of one order, that norm of all their elements together."""
    if norm_type in (0.0, 1.0):
        return matrix.sum(dim=1)
    if math.isinf(norm_type):
        return matrix.amax(dim=1) if norm_type > 0 else matrix.amin(dim=1)
    extreme = matrix.amax(dim=1, keepdim=True) if norm_type > 0 else matrix.amin(dim=1, keepdim=True)
    return _scaled_norm(matrix, extreme, norm_type)[:, 0]


def _scaled_norm(matrix: Tensor, reference: Tensor, norm_type: float) -> Tensor:
    """The p-norm of each row, [L, 1], relative to `reference` so that no power overflows or underflows."""
    usable = (reference > 0) & reference.isfinite()
    safe = torch.where(usable, reference, torch.ones_like(reference))
    powers = ((matrix / safe) ** norm_type).sum(dim=1, keepdim=True)
    # A reference of 0, inf or NaN is the norm itself, whatever the sign of the order.
    return torch.where(usable, power_norm(safe, powers, norm_type), reference)
