"""Clip by policies and groups in one call of the extension, which measures, decides and changes (CPU)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from torch import Tensor

from gradkern.clipping.deciding import NormGroups
from gradkern.clipping.overlap import raise_shared
from gradkern.clipping.policies import Policy
from gradkern.clipping.policies.native import NOTHING, NativePolicy
from gradkern.kernels.backend import C
from gradkern.params.group_stats import GroupTotals

_CHANGED: list[tuple[dict[str, Any], tuple[Any, ...]]] = [({}, (None, None))]
_WITHOUT_THRESHOLD = frozenset({"nothing", "value", "agc"})


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
        self._grouped, self._names = grouped, names
        groups = [names] if grouped is None else [group.names for group in grouped.groups]
        self._policies = list(zip(policies.values(), groups))
        self._rows: list[Tensor | None] = [None] if grouped is None else list(grouped.rows_on_host())
        self._natives: list[NativePolicy | None] = []
        self._counting: list[int] = []
        """Positions of the policies that count steps, which are asked again at each."""
        # What `_natives` was made from, for `dicts_unchanged`; at first something that has changed.
        self._settings: list[tuple[dict[str, Any], tuple[Any, ...]]] = _CHANGED

    def clip(
        self, params: Sequence[Tensor], norm_type: float, on_nonfinite: str, count_zeros: bool
    ) -> dict[str, Any] | None:
        """Clip in one call.

        Returns:
            Fields of `GradStats`, `numel` and `has_grad` among them. None, and nothing has changed, if a
            policy is written in Python or the gradients need another route.

        Raises:
            ValueError: gradients of different groups share memory. Nothing has changed.
        """
        # Between backward and the optimizer's step no code is cached, so that unchanged objects are kept.
        natives = self._unchanged() if C.dicts_unchanged(self._settings) else self._read_policies()
        if None in natives:
            return None
        columns: dict[str, Any] | None = C.clip_by_groups(
            params, natives, self._rows, norm_type, on_nonfinite, count_zeros, self._names
        )
        if columns is None:
            return None
        if "shared" in columns:
            assert self._grouped is not None
            raise_shared("GradClipper.clip_", columns["shared"], self._grouped.by_name(), self._names)
        for i in self._counting:
            native = natives[i]
            if native is not None and native.decided is not None:
                native.decided()
        self._add_limits(columns, natives)
        return columns

    def _unchanged(self) -> list[NativePolicy | None]:
        """The same policies as in the step before, where no setting has changed."""
        for i in self._counting:
            policy, names = self._policies[i]
            if policy is not None:
                self._natives[i] = policy.native(names)
        return self._natives

    def _read_policies(self) -> list[NativePolicy | None]:
        """The policies as they are now. Kept until a setting changes, but for those that count steps."""
        self._natives = [
            NOTHING if policy is None else policy.native(names) for policy, names in self._policies
        ]
        owners = [vars(policy) for policy, _ in self._policies if policy is not None]
        self._counting = [
            i for i, native in enumerate(self._natives) if native is not None and native.decided is not None
        ]
        self._settings = [(owner, tuple(chain.from_iterable(owner.items()))) for owner in owners]
        return self._natives

    def _add_limits(self, columns: dict[str, Any], natives: Sequence[NativePolicy | None]) -> None:
        """Make `threshold` and `_groups` of what the extension says about groups."""
        by_row, norm = columns.pop("row_threshold"), columns.pop("group_norm")
        limits: list[float | Tensor | None] = columns["threshold"]
        for i, native in enumerate(natives):
            if native is None or native.kind in _WITHOUT_THRESHOLD:
                limits[i] = None
            elif native.kind == "adagc":
                limits[i] = by_row
        grouped = self._grouped
        if grouped is None:
            columns["threshold"] = limits[0]
        else:
            columns["threshold"] = None
            columns["_groups"] = GroupTotals(
                grouped.names, grouped.member_names, self._rows, norm, limits, by_row
            )
