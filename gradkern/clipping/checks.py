"""Checks of the arguments of `GradClipper`."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gradkern.clipping.policies import Policy
from gradkern.params.arguments import unwrap_optimizer
from gradkern.params.plan import ParameterPlan


def check_one_way(max_norm: Any, policy: Any, groups: Any) -> None:
    """Check that one of the three ways to clip is chosen.

    Raises:
        TypeError: not exactly one of `max_norm`, `policy` and `groups` is given.
    """
    given = [n for n, v in (("max_norm", max_norm), ("policy", policy), ("groups", groups)) if v is not None]
    if len(given) != 1:
        raise TypeError(
            "[GradClipper] max_norm, policy, groups: expected exactly one of the three, got "
            f"{' and '.join(given) or 'none'}"
        )


def check_groups(groups: Any) -> None:
    """Check the form of `groups`, not its selectors.

    Raises:
        TypeError, ValueError: `groups` is not of the form ``{name: (selector, policy)}``, or empty.
    """
    if not isinstance(groups, Mapping):
        raise TypeError(
            f"[GradClipper] groups: expected {{name: (selector, policy)}}, got {type(groups).__name__}"
        )
    if not groups:
        raise ValueError("[GradClipper] groups: expected at least one group, got none")
    for name, entry in groups.items():
        if name == "":
            raise ValueError("[GradClipper] groups: expected names that are not empty, got ''")
        if not isinstance(name, str):
            raise TypeError(f"[GradClipper] groups: expected names that are strings, got {name!r}")
        if not isinstance(entry, tuple) or len(entry) != 2:
            raise TypeError(
                "[GradClipper] groups: expected a pair (selector, policy), where the policy may be a number "
                f"or None, for '{name}', got {entry!r}"
            )
        if _decides(entry[0]) and not _decides(entry[1]):
            raise TypeError(
                f"[GradClipper] groups['{name}']: expected (selector, policy), in this order, got {entry!r}"
            )


def _decides(entry: Any) -> bool:
    """Whether it can be the policy of a group."""
    return entry is None or isinstance(entry, (Policy, numbers.Real))


def check_state(state: Any, policies: Mapping[str, Policy | None]) -> None:
    """Check the argument of `load_state_dict` against the policies by group name.

    Raises:
        TypeError, ValueError: the state was not returned by a clipper with these policies.
    """
    operation = "GradClipper.load_state_dict"
    if not isinstance(state, Mapping) or not all(isinstance(own, Mapping) for own in state.values()):
        raise TypeError(
            f"[{operation}] state: expected what state_dict() returned, a dict of dicts by group name, got "
            f"{type(state).__name__}"
        )
    if set(state) != set(policies):
        raise ValueError(f"[{operation}] state: expected groups {sorted(policies)}, got {sorted(state)}")
    for name, policy in policies.items():
        if policy is None and state[name]:
            raise ValueError(
                f"[{operation}] state: there is no policy for '{name}', but the state has "
                f"{', '.join(sorted(state[name]))} for one"
            )


def check_policies(policies: Sequence[tuple[str, Policy | None]], fold: bool) -> None:
    """Check that the policies can be used together, and with `fold`.

    Raises:
        ValueError: one stateful policy is given to two groups, or `fold` with more than one factor.
    """
    owners: dict[int, str] = {}
    for name, policy in policies:
        if policy is None or type(policy).state_dict is Policy.state_dict:
            continue
        if id(policy) in owners:
            raise ValueError(
                f"[GradClipper] groups: '{owners[id(policy)]}' and '{name}' share one "
                f"{type(policy).__name__}, which keeps norms; give each group its own policy"
            )
        owners[id(policy)] = name
    several = any(name for name, _ in policies) or any(
        p is not None and not p.one_factor for _, p in policies
    )
    if fold and several:
        raise ValueError(
            "[GradClipper] fold: cannot be combined with groups or with a policy that has several factors, "
            "because a fused optimizer divides all gradients by one number; leave fold out"
        )


def check_folded(operation: str, optimizer: torch.optim.Optimizer, plan: ParameterPlan) -> None:
    """Check that the optimizer, which divides the gradients of its parameters, has those of the clipper.

    Raises:
        ValueError: it does not.
    """
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for param, name in zip(plan.params, plan.names):
        if param.requires_grad and id(param) not in stepped:
            raise ValueError(
                f"[{operation}] fold: the optimizer does not have '{name}', which would not be clipped; give "
                "clipper and optimizer the same parameters"
            )
    foreign = len(stepped - set(map(id, plan.params)))
    if foreign:
        raise ValueError(
            f"[{operation}] fold: the optimizer has parameters that the clipper does not have ({foreign}), "
            "which would be scaled but not measured; give clipper and optimizer the same parameters"
        )


def check_optimizer(
    optimizer: torch.optim.Optimizer | None, on_nonfinite: str, fold: bool, may_skip: bool
) -> None:
    """Check that an optimizer is given where one is needed, and only there.

    Args:
        may_skip: whether a policy can skip steps.

    Raises:
        TypeError: `optimizer` is not an optimizer.
        ValueError: it is given but not needed, or `fold` is given without it.
    """
    if optimizer is not None and not isinstance(unwrap_optimizer(optimizer), torch.optim.Optimizer):
        raise TypeError(
            f"[GradClipper] optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    if optimizer is not None and on_nonfinite not in ("skip", "raise_later") and not (fold or may_skip):
        raise ValueError(
            f"[GradClipper] optimizer: has no effect with on_nonfinite={on_nonfinite!r}. It is used with "
            "on_nonfinite='skip' or 'raise_later', a policy that skips steps, or fold=True; leave it out"
        )
    if fold and optimizer is None:
        raise ValueError("[GradClipper] fold: needs a fused optimizer; pass it as optimizer=")
