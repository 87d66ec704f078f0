"""Decisions of a clipper's policies: one for all parameters, or one per named group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from gradkern.clipping import policies as public
from gradkern.clipping.first_step import copied
from gradkern.clipping.policies import (
    ElementPolicy,
    GlobalNorm,
    Policy,
    Schedule,
    SettledDecision,
    settled,
)
from gradkern.clipping.policies.stateful import StepPolicy
from gradkern.kernels.backend import C
from gradkern.kernels.measured import Measured
from gradkern.kernels.torch_scale import coefficient
from gradkern.params.arguments import as_limit
from gradkern.params.group_stats import GroupTotals
from gradkern.params.stats import GradStats

_CPU = torch.device("cpu")


def as_policy(operation: str, name: str, policy: Any) -> Policy | None:
    """The policy that an argument means: a policy itself, a number for `GlobalNorm`, None for no clipping.

    Raises:
        TypeError, ValueError: it is none of these.
    """
    if policy is None or isinstance(policy, Policy):
        return policy
    if isinstance(policy, type):
        raise TypeError(
            f"[{operation}] {name}: expected a policy, a number or None, got the class {policy.__name__}; "
            f"pass an instance: {policy.__name__}()"
        )
    if not hasattr(policy, "__float__"):
        raise TypeError(
            f"[{operation}] {name}: expected a policy, a number or None, got {type(policy).__name__}; "
            f"policies are objects, such as gradkern.policies.ZClip(); there are {_policies_in_words()}"
        )
    return GlobalNorm(as_limit(operation, name, policy))


def _policies_in_words() -> str:
    kinds = {name: getattr(public, name) for name in public.__all__}
    return ", ".join(
        name
        for name, kind in kinds.items()
        if isinstance(kind, type) and issubclass(kind, Policy) and kind not in (Policy, ElementPolicy)
    )


class PolicyFacts:
    """The policies and their settings as plain values; the same object until a setting changes.

    Args:
        policies: the policy of each group by name; without groups, the policy under the name "".
    """

    def __init__(self, policies: Mapping[str, Policy | None], grouped: bool) -> None:
        self._policies, self._grouped = policies, grouped
        self._snapshots: list[tuple[dict[str, Any], tuple[Any, ...]]] = []
        self._on_nonfinite: str | None = None
        self._described: dict[str, Any] = {}
        self._checked: object = None

    def __call__(self, on_nonfinite: str, checked: object = None) -> dict[str, Any]:
        """Describe the policies.

        Args:
            checked: an object that the caller replaces whenever a setting changes. Settings are not looked at
                then while it is the same.
        """
        same = checked is not None and checked is self._checked
        self._checked = checked
        if on_nonfinite == self._on_nonfinite and (same or C.dicts_unchanged(self._snapshots)):
            return self._described
        owners = [vars(policy) for policy in self._policies.values() if policy is not None]
        self._snapshots = [(owner, tuple(chain.from_iterable(owner.items()))) for owner in owners]
        settings = {name: facts_of(policy) for name, policy in self._policies.items()}
        facts = {"groups": settings} if self._grouped else settings[""]
        described = {**facts, "on_nonfinite": on_nonfinite}
        if described != self._described:
            self._described = described
        self._on_nonfinite = on_nonfinite
        return self._described


def facts_of(policy: Policy | None) -> dict[str, Any]:
    """The class and settings of a policy as plain values."""
    if policy is None:
        return {}
    return {"class": name_of(policy), **{k: v for k, v in policy.settings().items() if v != math.inf}}


def name_of(policy: Policy) -> str:
    """The policy's name: its class, or "custom"."""
    return type(policy).__name__.lstrip("_")


@dataclass
class Group:
    """A named group: its rows and its policy."""

    name: str
    rows: list[int]
    policy: Policy | None
    names: tuple[str, ...] = ()


class NormGroups:
    """The named groups of a list of parameters.

    Args:
        groups: the groups in order. Every row is in exactly one of them.
        names: the names of all rows.
    """

    def __init__(self, groups: Sequence[Group], names: Sequence[str]) -> None:
        self.groups = list(groups)
        for group in self.groups:
            group.names = tuple(names[row] for row in group.rows)
        self.names = tuple(group.name for group in self.groups)
        self.member_names = [group.names for group in self.groups]
        self.members = [group.rows for group in self.groups]
        self._group_of = [0] * len(names)
        for number, group in enumerate(self.groups):
            for row in group.rows:
                self._group_of[row] = number
        # What the caller has written can raise, so it decides before any state of the others changes.
        self._deciding = sorted(
            (
                number
                for number, group in enumerate(self.groups)
                if group.policy is not None and type(group.policy) is not GlobalNorm
            ),
            key=lambda number: isinstance(self.groups[number].policy, Schedule | StepPolicy),
        )
        self._on: dict[torch.device, tuple[Tensor, list[Tensor]]] = {}
        self._unlimited: dict[torch.device, Tensor] = {}

    def by_name(self) -> dict[str, list[int]]:
        """The rows of each group."""
        return {group.name: group.rows for group in self.groups}

    def rows_on_host(self) -> list[Tensor]:
        """int64: the rows of each group."""
        return self._indices(_CPU)[1]

    def decide(self, stats: GradStats, measured: Measured) -> tuple[SettledDecision, GroupTotals]:
        """Let every group's policy decide.

        Policies that go by the total norm also decide on pipeline stages that have no parameter of their
        group, so that all stages skip the same steps and have the same state.

        Returns:
            One decision for all rows, and what is known of the groups.
        """
        assert measured.group_norm is not None
        norms, device = measured.group_norm, stats.norm.device
        of_row, rows = self._indices(device)
        factor = coefficient(norms, self._limits_on(device))[of_row]
        skip: Tensor | None = None
        thresholds: list[float | Tensor | None] = [_limit(group.policy) for group in self.groups]
        self._check_states()
        for number in self._deciding:
            group = self.groups[number]
            assert group.policy is not None
            if not group.rows and group.policy.needs_rows:  # a pipeline stage without parameters of the group
                continue
            found = group.policy.decide(_part(stats, group, rows[number], norms[number]))
            own = settled(found, len(group.rows), device, name_of(group.policy))
            factor[rows[number]] = own.factor.to(factor.dtype)
            thresholds[number] = own.threshold
            if own.skip is not None:
                skip = own.skip if skip is None else skip | own.skip
        columns = GroupTotals(self.names, self.member_names, rows, norms, thresholds)
        return SettledDecision(factor, skip), columns

    def _check_states(self) -> None:
        """Check what can raise in policies with a state, before one of them changes its state.

        Raises:
            TypeError, ValueError: a `Schedule` returns no limit, or a loaded state does not fit.
        """
        for group in self.groups:
            if isinstance(group.policy, Schedule):
                group.policy.native(group.names)
            elif isinstance(group.policy, StepPolicy) and (group.rows or not group.policy.needs_rows):
                group.policy.check_rows(len(group.rows))

    def _indices(self, device: torch.device) -> tuple[Tensor, list[Tensor]]:
        if device not in self._on:
            listed = [torch.tensor(rows, dtype=torch.int64, device="cpu") for rows in self.members]
            of_row = torch.tensor(self._group_of, dtype=torch.int64, device="cpu")
            self._on[device] = copied(of_row, device), [copied(rows, device) for rows in listed]
        return self._on[device]

    def _limits_on(self, device: torch.device) -> Tensor:
        """[groups]: `max_norm` of the groups with a `GlobalNorm`, inf for the others."""
        if device not in self._unlimited:
            wide = torch.float32 if device.type == "mps" else torch.float64
            self._unlimited[device] = torch.full((), math.inf, dtype=wide, device=device)
        unlimited = self._unlimited[device]
        return torch.stack(
            [
                group.policy.limit_on(device) if type(group.policy) is GlobalNorm else unlimited
                for group in self.groups
            ]
        )


def _limit(policy: Policy | None) -> float | None:
    return policy.max_norm if isinstance(policy, GlobalNorm) else None


def _part(stats: GradStats, group: Group, rows: Tensor, norm: Tensor) -> GradStats:
    """The statistics of one group."""
    place = {row: i for i, row in enumerate(group.rows)}
    wide = stats.deciding_rows()[rows]
    measured = Measured(
        norm=stats.norm[rows],
        l2_norm=stats.l2_norm[rows],
        max_abs=stats.max_abs[rows],
        nonfinite=stats.nonfinite[rows],
        zeros=None if stats.zeros is None else stats.zeros[rows],
        total_norm=norm.to(stats.total_norm.dtype),
        decision_norm=norm,
        has_grad=tuple(stats.has_grad[row] for row in group.rows),
        wide_norm=wide,
    )
    numel = tuple(stats.numel[row] for row in group.rows)
    first = tuple(place.get(stats.first[row], place[row]) for row in group.rows)
    return GradStats.of(measured, group.names, numel, first, (), stats.norm_type, inv_scale=stats.inv_scale)


__all__ = ["Group", "NormGroups", "PolicyFacts", "as_policy", "facts_of", "name_of"]
