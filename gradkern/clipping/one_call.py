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
        self.natives: list[NativePolicy | None] = []
        """The policies; another list whenever a setting has changed."""
        self._counting: list[int] = []
        """Positions of the policies that count steps, which are asked again at each."""
        self._plan: Any = None
        """`GroupPlan` of the extension, made of `natives`; None if one of them is None."""
        # What `natives` was made from, for `dicts_unchanged`; at first something that has changed.
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
        # Between backward and the optimizer's step no code is cached, so that little of it runs where nothing
        # has changed.
        if not C.dicts_unchanged(self._settings):
            self._look()
        elif self._counting:
            self._count()
        if self._plan is None:
            return None
        columns: dict[str, Any] | None = C.clip_by_groups(
            params, self._plan, norm_type, on_nonfinite, count_zeros, self._names
        )
        if columns is None:
            return None
        grouped = self._grouped
        if grouped is not None:
            if "shared" in columns:
                raise_shared("GradClipper.clip_", columns["shared"], grouped.by_name(), self._names)
            columns["_groups"] = GroupTotals(
                grouped.names, grouped.member_names, self._rows, *columns["_groups"]
            )
        for i in self._counting:
            native = self.natives[i]
            if native is not None and native.decided is not None:
                native.decided()
        return columns

    def _count(self) -> None:
        """Ask the policies that count steps for this one, where no setting has changed."""
        changed = False
        for i in self._counting:
            policy, names = self._policies[i]
            native = None if policy is None else policy.native(names)
            changed = changed or native is not self.natives[i]
            self.natives[i] = native
        if changed:
            self._plan_again()

    def _look(self) -> None:
        """Take the policies as they are now, until a setting changes."""
        self.natives = [
            NOTHING if policy is None else policy.native(names) for policy, names in self._policies
        ]
        owners = [vars(policy) for policy, _ in self._policies if policy is not None]
        self._counting = [
            i for i, native in enumerate(self.natives) if native is not None and native.decided is not None
        ]
        self._settings = [(owner, tuple(chain.from_iterable(owner.items()))) for owner in owners]
        self._plan_again()

    def _plan_again(self) -> None:
        self._plan = None if None in self.natives else C.GroupPlan(self.natives, self._rows)
