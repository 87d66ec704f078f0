"""Clip by policies and groups in one call of the extension, which measures, decides and scales (CPU)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradkern.clipping.deciding import NormGroups
from gradkern.clipping.policies import Policy
from gradkern.clipping.policies.native import NOTHING, NativePolicy
from gradkern.kernels.backend import C
from gradkern.kernels.measured import Measured
from gradkern.params.stats import GroupStats

_THRESHOLD = 2
"""The row of `clip_by_groups`'s "groups" that has the thresholds, after norms and factors."""


@dataclass
class OneCallClip:
    """The result of one call."""

    measured: Measured
    factor: Tensor | None
    """float64 [N]; None if all gradients were multiplied by `measured.clip_coef`."""
    groups: dict[str, GroupStats] | None
    threshold: float | Tensor | None
    skip_step: Tensor


class OneCall:
    """The policies of a clipper in the form that the extension takes.

    Args:
        policies: the policy of each group by name; without groups, the policy under the name "".
        grouped: the named groups, or None.
        names: the names of all rows.
    """

    def __init__(
        self, policies: Mapping[str, Policy | None], grouped: NormGroups | None, names: tuple[str, ...]
    ) -> None:
        self._policies = list(policies.values())
        #: Whether one of them can skip a step.
        self.may_skip = any(policy is not None and policy.may_skip for policy in self._policies)
        self._grouped = grouped
        self._names = [names] if grouped is None else [group.names for group in grouped.groups]
        self._rows: list[Tensor | None] = [None] if grouped is None else list(map(_row, grouped.members))

    def clip(
        self,
        params: Sequence[Tensor],
        norm_type: float,
        on_nonfinite: str,
        count_zeros: bool,
        names: Sequence[str],
    ) -> OneCallClip | None:
        """Clip in one call. None if a policy is written in Python or the gradients are not supported."""
        natives = [
            NOTHING if policy is None else policy.native(own)
            for policy, own in zip(self._policies, self._names)
        ]
        if None in natives:
            return None
        listed = [
            (native.kind, native.constants, native.state, rows, native.layers)
            for native, rows in zip(natives, self._rows)
            if native is not None
        ]
        columns = C.clip_by_groups(params, listed, norm_type, on_nonfinite, count_zeros, names)
        if columns is None:
            return None
        for native in natives:
            if native is not None and native.decided is not None:
                native.decided()
        return self._told(columns, natives)

    def _told(self, columns: dict[str, Any], natives: Sequence[NativePolicy | None]) -> OneCallClip:
        numbers, by_row = columns.pop("groups"), columns.pop("thresholds")
        factor = columns.pop("factor")
        measured = Measured(**columns)
        assert measured.skip_step is not None
        limits: list[float | Tensor | None] = []
        for native, rows, limit in zip(natives, self._rows, numbers.tolist()[_THRESHOLD]):
            if native is None or native.kind == "nothing":
                limits.append(None)
            elif native.kind == "adagc":
                limits.append(by_row if rows is None else by_row[rows])
            else:
                limits.append(limit)
        if self._grouped is None:
            return OneCallClip(measured, factor, None, limits[0], measured.skip_step)
        norm, factors_of, _ = numbers.unbind()
        norms, factors = norm.to(measured.total_norm.dtype).unbind(), factors_of.unbind()
        groups = {
            group.name: GroupStats(group.names, norms[i], factors[i], limits[i])
            for i, group in enumerate(self._grouped.groups)
        }
        return OneCallClip(measured, factor, groups, None, measured.skip_step)


def _row(positions: Sequence[int]) -> Tensor:
    return torch.tensor(positions, dtype=torch.int64, device="cpu")
