"""`PerLayerNorm`: limit the norm of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from gradkern._util.names import as_depth, layer_of
from gradkern.clipping.first_step import copied
from gradkern.clipping.policies.checks import Check
from gradkern.clipping.policies.decision import Decision
from gradkern.clipping.policies.limit import LimitedPolicy
from gradkern.clipping.policies.native import NativePolicy
from gradkern.kernels.torch_scale import coefficient
from gradkern.params.row_groups import RowGroups
from gradkern.params.stats import GradStats


class PerLayerNorm(LimitedPolicy):
    """Scale the gradients of each layer by ``max_norm / (layer_norm + 1e-6)`` if that is below 1.

    `layer_norm` is the norm of the layer's gradients together. A layer with large gradients does not affect
    the others, but the direction of the whole gradient changes.

    Args:
        max_norm: the largest norm of a layer. It can be set between steps, and between replays of a CUDA
            graph.
        depth: the number of leading components of a module's name that make a layer, as in
            `GradStats.by_layer`. Default: the module that owns the parameter.

    Raises:
        TypeError, ValueError: an invalid argument.
    """

    needs_rows = True
    one_factor = False
    _checks: ClassVar[Mapping[str, Check]] = {"depth": lambda policy, name, value: as_depth(policy, value)}

    def __init__(self, max_norm: float = 1.0, depth: int | None = None) -> None:
        super().__init__(max_norm)
        self.depth = depth
        self._known: tuple[object, ...] = ()
        self._layer_of_row: tuple[tuple[str, ...], int | None, Tensor] | None = None

    def decide(self, stats: GradStats) -> Decision:
        groups, of_row = self._layers(stats)
        norms = groups.norm(stats.deciding_rows(), stats.norm_type)
        factor = coefficient(norms, self.limit_on(norms.device))
        return Decision(factor[of_row], threshold=self.max_norm)

    def native(self, names: tuple[str, ...]) -> NativePolicy | None:
        known = self._layer_of_row
        if known is None or known[0] is not names or known[1] != self.depth:
            place: dict[str, int] = {}
            of_row = [place.setdefault(layer_of(name, self.depth), len(place)) for name in names]
            known = names, self.depth, torch.tensor(of_row, dtype=torch.int64, device="cpu")
            self._layer_of_row = known
        return NativePolicy("global_norm", (self._max_norm,), layers=known[2])

    def _layers(self, stats: GradStats) -> tuple[RowGroups, Tensor]:
        """The rows that count in each layer, and the layer of each row. Cached until the rows change."""
        device = stats.norm.device
        key = stats.names, stats.has_grad, device, self.depth
        if not self._known or self._known[0] is not stats.names or self._known[1:4] != key[1:]:
            layers: dict[str, list[int]] = {}
            place: dict[str, int] = {}
            of_row = []
            for row, name in enumerate(stats.names):
                layer = layer_of(name, self.depth)
                members = layers.setdefault(layer, [])
                of_row.append(place.setdefault(layer, len(place)))
                if stats.first[row] == row and stats.has_grad[row] and stats.numel[row]:
                    members.append(row)
            index = copied(torch.tensor(of_row, dtype=torch.int64, device="cpu"), device)
            self._known = *key, RowGroups(list(layers.values()), len(stats), device), index
        groups, kept = self._known[4:]
        assert isinstance(groups, RowGroups) and isinstance(kept, Tensor)
        return groups, kept
