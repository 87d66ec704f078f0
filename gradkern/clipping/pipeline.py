"""Clipping in separate steps: measure, decide, apply.

For what the compiled one-call route does not take: DTensors and process groups, tensors without a
kernel, loss scaling, and folding the coefficient into the optimizer. The formulas are those of
csrc/core/clip.h; values stay on the gradients' device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradkern.clipping import route
from gradkern.kernels import torch_ops
from gradkern.kernels.extension import DISABLED, C
from gradkern.kernels.scale import coefficient, is_one, scale_, zero_where_

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass
class Cache:
    """What a long-lived caller keeps from call to call."""

    plan: Any = None
    """The `RankPlan` of the last call."""
    held: Sequence[Tensor | None] | None = None
    """What this rank held of each gradient in the call under way."""
    names: Sequence[str] | None = None
    """The names the plan was made for: another object means other parameters."""
    by_torch: bool = False
    """Whether the call under way is measured by torch's own operations."""


@dataclass(frozen=True)
class Groups:
    """Which further ranks share the list; see `GradClipper`."""

    process_group: ProcessGroup | None = None
    pp_group: ProcessGroup | None = None
    in_group: Callable[[int], bool] | None = None
    elsewhere: Callable[[int], bool] | None = None

    @property
    def named(self) -> bool:
        return self.process_group is not None or self.pp_group is not None or self.elsewhere is not None

    def as_arguments(self) -> dict[str, Any]:
        """For `RankPlan`."""
        return {
            "process_group": self.process_group,
            "pp_group": self.pp_group,
            "in_group": self.in_group,
            "elsewhere": self.elsewhere,
            "prefer_world": True,
        }


NO_GROUPS = Groups()


def measure_columns(
    operation: str,
    params: Sequence[Tensor],
    names: Sequence[str],
    norm_type: float,
    count_zeros: bool,
    inv_scale: float | Tensor,
    groups: Groups = NO_GROUPS,
    cache: Cache | None = None,
) -> dict[str, Any]:
    """The columns of `_C.measure` by whichever route takes the list, and "nonfinite_total" (0-d)."""
    cache = Cache() if cache is None else cache
    if cache.names is not names:
        cache.plan, cache.names = None, names
    cache.held, cache.by_torch = None, False
    if groups.named or cache.plan is not None or route.is_distributed(params):
        together = route.together(
            params,
            [p.grad for p in params],
            plan=cache.plan,
            operation=operation,
            names=names,
            **groups.as_arguments(),
        )
        cache.plan, cache.held = together.plan, together.held
        found: dict[str, Any] = together.columns(norm_type, count_zeros, inv_scale)
        return found
    number = inv_scale if isinstance(inv_scale, float) else 1.0
    columns = None if DISABLED else C.measure(params, norm_type, count_zeros, number, names)
    if columns is None:
        cache.by_torch = True
        columns = torch_ops.measure(params, norm_type, count_zeros, number)
    columns.pop("numel", None)
    columns.pop("decision_norm", None)
    if not isinstance(inv_scale, float):  # a scale on a device is multiplied there
        # A count of non-zeros stays what it is.
        scaled = ("l2_norm", "max_abs") if norm_type == 0 else ("norm", "l2_norm", "max_abs", "total_norm")
        for key in scaled:
            columns[key] = columns[key] * inv_scale.abs()
    columns["nonfinite_total"] = columns["nonfinite"].sum()
    return columns


@dataclass(frozen=True)
class Verdict:
    """What is to be done with the gradients, on their device."""

    coef: Tensor
    """0-d float64: what the gradients are to be multiplied by; 1 where nothing is to be done."""
    bad: Tensor
    """0-d bool: whether a gradient holds inf or NaN."""


def decide(columns: dict[str, Any], max_norm: float, policy: str) -> Verdict:
    """`decide_clip` of csrc/core/clip.h with tensors."""
    total = columns["total_norm"]
    bad = columns["nonfinite_total"] > 0
    one = torch.ones((), dtype=torch_ops.widest(total), device=total.device)
    coef = one if max_norm == math.inf else coefficient(total, max_norm)
    if policy == "skip":
        coef = torch.where(bad, one, coef)
    elif policy == "zero":
        coef = torch.where(bad, torch.zeros_like(one), coef)
    return Verdict(coef, bad)


def raise_if_bad(columns: dict[str, Any], verdict: Verdict, names: Sequence[str], operation: str) -> None:
    """on_nonfinite="raise": the same verdict on every rank. Synchronises."""
    if not bool(verdict.bad):
        return
    found = [f"'{n}' ({c} elements)" for n, c in zip(names, columns["nonfinite"].tolist()) if c]
    listed = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
    raise RuntimeError(
        f"[{operation}] expected finite gradients, got inf or NaN in: "
        f"{listed or 'parameters of other ranks only'}. Gradients are unchanged."
    )


def apply(
    params: Sequence[Tensor],
    factor: Tensor,
    zero: Tensor | None,
    held: Sequence[Tensor | None] | None = None,
) -> None:
    """Scale by `factor`; where the 0-d `zero` holds, set to zero instead.

    `held`: what this rank holds of each gradient, where that is known.
    """
    if zero is None and is_one(factor):
        return
    grads = [p.grad for p in params]
    shards = route.written_shards(grads) if held is None else held
    if zero is not None:
        factor = torch.where(zero, torch.ones_like(factor), factor)
    scale_(grads, shards, factor)
    if zero is not None:
        zero_where_(shards, zero)


def agree(
    operation: str,
    params: Sequence[Tensor],
    names: Sequence[str],
    norm_type: float,
    groups: Groups,
    cache: Cache,
) -> None:
    """Let the ranks of every mesh find out whether they list the same parameters; a collective of
    16 bytes a mesh dimension. Nothing where there is no DTensor.

    Raises:
        ValueError: they do not; on every rank of the mesh.
    """
    if not route.is_distributed(params):
        return
    together = route.together(params, [p.grad for p in params], operation=operation, **groups.as_arguments())
    together.plan.agree(operation, names, params, norm_type)
    cache.plan, cache.names = together.plan, names
