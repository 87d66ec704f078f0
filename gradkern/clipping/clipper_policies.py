"""The policies of a clipper: one for all parameters, or one per named group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from gradkern.clipping.checks import check_groups, check_one_way, check_state
from gradkern.clipping.deciding import Group, NormGroups, PolicyFacts, as_policy, facts_of, name_of
from gradkern.clipping.elements import ElementParts
from gradkern.clipping.one_call import OneCall
from gradkern.clipping.overlap import check_at_first, check_no_overlap
from gradkern.clipping.policies import GlobalNorm, Policy, SettledDecision, settled
from gradkern.clipping.policies.stateful import StepPolicy
from gradkern.clipping.selection import members_of
from gradkern.kernels.measured import Measured
from gradkern.params.arguments import as_limit
from gradkern.params.group_stats import GroupTotals
from gradkern.params.plan import ParameterPlan
from gradkern.params.stats import GradStats


class ClipperPolicies:
    """What `GradClipper` was given as `max_norm`, `policy` or `groups`.

    Raises:
        TypeError, ValueError: not exactly one of them is given, or it is not valid.
    """

    def __init__(self, max_norm: Any, policy: Any, groups: Any) -> None:
        check_one_way(max_norm, policy, groups)
        self._selectors: dict[str, Any] | None = None
        if groups is None:
            given = max_norm if policy is None else policy
            if policy is None and not isinstance(max_norm, Policy):
                given = GlobalNorm(as_limit("GradClipper", "max_norm", max_norm))
            self.by_name: dict[str, Policy | None] = {"": as_policy("GradClipper", "policy", given)}
        else:
            check_groups(groups)
            self.by_name = {
                name: as_policy("GradClipper", f"groups['{name}']", given)
                for name, (_, given) in groups.items()
            }
            # Selectors are read more than once, which an iterator does not allow.
            self._selectors = {
                name: tuple(given) if isinstance(given, Iterator) else given
                for name, (given, _) in groups.items()
            }
        #: The policy for all parameters; None with groups.
        self._single = self.by_name[""] if groups is None else None
        #: The same if it only limits the total norm.
        self.global_norm = self._single if type(self._single) is GlobalNorm else None
        self.facts = PolicyFacts(self.by_name, groups is not None)
        self._norm_groups: NormGroups | None = None
        # Each with the names of the parameters that it was made for.
        self._grouped: tuple[str, ...] | None = None
        self._one_call: tuple[Any, OneCall | None] = (None, None)
        self._elements: tuple[Any, ElementParts | None] = (None, None)

    def __repr__(self) -> str:
        """As the arguments of `GradClipper`, with the number of parameters of each group."""
        if self.global_norm is not None:
            return f"max_norm={self.global_norm.max_norm!r}"
        if self._selectors is None:
            return f"policy={self._single!r}"
        rows = self.rows_by_group()
        groups = (
            f"{name!r}: ({len(rows.get(name, ()))}, {policy!r})" for name, policy in self.by_name.items()
        )
        return f"groups={{{', '.join(groups)}}}"

    @property
    def may_skip(self) -> bool:
        """Whether a policy can skip steps."""
        return any(policy is not None and policy.may_skip for policy in self.by_name.values())

    @property
    def may_skip_by_rows(self) -> bool:
        """Whether a policy can skip steps because of rows, which differ from pipeline stage to stage."""
        return any(p is not None and p.may_skip and p.needs_rows for p in self.by_name.values())

    @property
    def has_groups(self) -> bool:
        return self._selectors is not None

    def form_groups(self, plan: ParameterPlan, may_be_empty: bool) -> None:
        """Find the members of the named groups, again whenever the module's parameters have changed.

        Raises:
            TypeError, ValueError: see `members_of`.
        """
        names = plan.names
        if self._selectors is None or self._grouped is names:
            return
        members = members_of(self._selectors, names, plan.params, may_be_empty)
        groups = [Group(name, rows, self.by_name[name]) for name, rows in members.items()]
        self._norm_groups, self._grouped = NormGroups(groups, names), names

    def rows_by_group(self) -> dict[str, list[int]]:
        """The rows of each named group; empty without groups."""
        return {} if self._norm_groups is None else self._norm_groups.by_name()

    def described(self) -> dict[str, object]:
        """What has to be the same on every rank, by argument: the settings of built-in policies, and the
        class of others, whose attributes may be about the rank."""
        found: dict[str, object] = {}
        for name, policy in self.by_name.items():
            alone = "max_norm" if self.global_norm is not None else "policy"
            built_in = policy is None or type(policy).__module__.startswith("gradkern.")
            facts = facts_of(policy) if built_in else {"class": type(policy).__name__}
            found[f"groups['{name}']" if self.has_groups else alone] = facts or None
        return found

    def members(self) -> list[list[int]] | None:
        """`route.measure`'s argument: what has to be measured besides the rows and the total."""
        if self._norm_groups is not None:
            return self._norm_groups.members
        return [] if self._single is not None and self._single.needs_rows else None

    def check_at_first(self, plan: ParameterPlan) -> None:
        """Check the memory of gradients and parameters when the clipper is built.

        Raises:
            ValueError: gradients of different groups share memory.
        """
        groups = self._norm_groups
        if groups is not None and len(groups.groups) > 1:
            check_at_first(groups.by_name(), plan.params, plan.names, groups.rows_on_host())

    def check_overlap(self, plan: ParameterPlan, held: Sequence[Tensor | None] | None) -> None:
        """Check that gradients of different groups share no memory.

        Args:
            held: what this rank holds of each gradient; None for the gradients themselves.

        Raises:
            ValueError: two of them do.
        """
        groups = self._norm_groups
        if groups is not None and len(groups.groups) > 1:
            written = [param.grad for param in plan.params] if held is None else held
            check_no_overlap(groups.by_name(), written, plan.names, groups.rows_on_host())

    def decide(self, stats: GradStats, measured: Measured) -> tuple[SettledDecision, GroupTotals | None]:
        """The decision for all rows, and the statistics of the groups if there are any."""
        if self._norm_groups is None:
            policy = self._single
            assert policy is not None
            return settled(policy.decide(stats), len(stats), stats.norm.device, name_of(policy)), None
        return self._norm_groups.decide(stats, measured)

    def one_call(self, plan: ParameterPlan) -> OneCall:
        """The policies as the extension takes them, for the parameters as they are now, all of this rank."""
        names, call = plan.names, self._one_call[1]
        if call is None or self._one_call[0] is not names:
            self.form_groups(plan, may_be_empty=False)
            call = OneCall(self.by_name, self._norm_groups, names)
            self._one_call = names, call
        return call

    def elements(self, plan: ParameterPlan) -> ElementParts:
        """The policies that change single elements, with their rows."""
        names, parts = plan.names, self._elements[1]
        if parts is None or self._elements[0] is not names:
            grouped = self._norm_groups
            whole: list[tuple[Policy | None, Sequence[int]]] = [(self._single, range(len(names)))]
            listed = whole if grouped is None else [(g.policy, g.rows) for g in grouped.groups]
            parts = ElementParts(listed, names, plan.first)
            self._elements = names, parts
        return parts

    def state_dict(self) -> dict[str, Any]:
        """The state of each policy by name."""
        return {name: {} if p is None else p.state_dict() for name, p in self.by_name.items()}

    def load_state_dict(self, state: Mapping[str, Any], plan: ParameterPlan) -> None:
        """Load the states of all policies, or of none.

        Raises:
            TypeError, ValueError: the state is that of other groups, other policies or other parameters.
        """
        check_state(state, self.by_name)
        before = self.state_dict()
        rows = {name: len(own) for name, own in self.rows_by_group().items()}
        try:
            for name, policy in self.by_name.items():
                if policy is not None:
                    policy.load_state_dict(state[name])
                if isinstance(policy, StepPolicy):
                    policy.check_rows(rows.get(name, len(plan.names)))
        except Exception:
            for name, policy in self.by_name.items():
                if policy is not None:
                    policy.load_state_dict(before[name])
            raise
