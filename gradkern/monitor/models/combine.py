"""Statistics of a step that was clipped in pieces or twice as one `GradStats`, and some rows of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradkern.params.group_stats import GroupStats
from gradkern.params.names import first_rows
from gradkern.params.stats import GradStats


def combined(pieces: list[GradStats]) -> GradStats:
    """The statistics of disjoint sets of parameters together. No synchronisation if all are on one device."""
    head = pieces[0]
    if len(pieces) == 1:
        return head
    device = head.total_norm.device

    def rows(name: str) -> Tensor:
        return torch.cat([getattr(piece, name).to(device, non_blocking=True) for piece in pieces])

    def scalars(name: str) -> Tensor | None:
        found = [value for piece in pieces if (value := getattr(piece, name)) is not None]
        return torch.stack([value.to(device, non_blocking=True) for value in found]) if found else None

    norm = rows("norm")
    one_norm = all(piece.l2_norm is piece.norm for piece in pieces)
    totals, coefs, skips = scalars("total_norm"), scalars("clip_coef"), scalars("skip_step")
    assert totals is not None
    identities = tuple(identity for piece in pieces for identity in piece._identities)
    return GradStats(
        names=tuple(name for piece in pieces for name in piece.names),
        numel=tuple(n for piece in pieces for n in piece.numel),
        has_grad=tuple(has for piece in pieces for has in piece.has_grad),
        norm=norm,
        l2_norm=norm if one_norm else rows("l2_norm"),
        max_abs=rows("max_abs"),
        nonfinite=rows("nonfinite"),
        zeros=None if any(piece.zeros is None for piece in pieces) else rows("zeros"),
        total_norm=_together(totals, head.norm_type),
        clip_coef=None if coefs is None else coefs.amin(),
        skip_step=None if skips is None else skips.any(),
        norm_type=head.norm_type,
        inv_scale=head.inv_scale,
        first=first_rows(identities),
        applied=head.applied,
        threshold=_common([piece.threshold for piece in pieces]),
        _factor=None if coefs is None else torch.cat([_factors(piece, device) for piece in pieces]),
        _identities=identities,
        policy=_policies(pieces),
        _groups=_groups(pieces),
    )


def clipped_again(first: GradStats, later: GradStats) -> GradStats:
    """The statistics of gradients that were clipped twice: norms are those before the first clip, the
    coefficient is that of both, and the limit is the smaller one."""
    if later.clip_coef is None:
        return dataclasses.replace(first, applied=first.applied or later.applied)
    if first.clip_coef is None:
        coef, factor, limit = later.clip_coef, later._factor, later.threshold
    else:
        device = first.total_norm.device
        coef, limit = first.clip_coef * later.clip_coef.to(device), _smaller(first.threshold, later.threshold)
        both = first._factor is None and later._factor is None
        factor = None if both else _factors(first, device) * _factors(later, device)
    return dataclasses.replace(
        first,
        clip_coef=coef,
        applied=first.applied or later.applied,
        threshold=limit,
        skip_step=later.skip_step if first.skip_step is None else first.skip_step,
        policy=later.policy if first.policy is None else first.policy,
        _factor=factor,
    )


def _smaller(one: float | Tensor | None, other: float | Tensor | None) -> float | Tensor | None:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return other
    limits = [limit for limit in (one, other) if limit is not None]
    return min(limits) if limits else None


def rows_of(stats: GradStats, rows: Sequence[int]) -> GradStats:
    """Some of the rows. Totals stay those of the whole clip, since the limit applies to them."""
    index = torch.tensor(rows, device=stats.norm.device)

    def chosen(values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(values[row] for row in rows)

    norm = stats.norm[index]
    identities = chosen(stats._identities)
    return dataclasses.replace(
        stats,
        names=chosen(stats.names),
        numel=chosen(stats.numel),
        has_grad=chosen(stats.has_grad),
        norm=norm,
        l2_norm=norm if stats.l2_norm is stats.norm else stats.l2_norm[index],
        max_abs=stats.max_abs[index],
        nonfinite=stats.nonfinite[index],
        zeros=None if stats.zeros is None else stats.zeros[index],
        first=first_rows(identities),
        _factor=None if stats._factor is None else stats._factor[index],
        _wide_norm=None if stats._wide_norm is None else stats._wide_norm[index],
        _groups=None,
        _identities=identities,
    )


def rest_of(stats: GradStats, rows: Sequence[int]) -> GradStats:
    """Some of the rows, with their own total norm."""
    part = rows_of(stats, rows)
    return dataclasses.replace(part, total_norm=_together(part.norm, stats.norm_type), decision_norm=None)


def with_total(stats: GradStats, given: Tensor) -> GradStats:
    """The statistics with the total norm that the caller gives, if that has more in it than these gradients:
    those of other pipeline stages. torch rounds a total to the gradients' dtype, of bfloat16 by up to 2**-8.
    """
    own = stats.total_norm.double()
    total = torch.where(given > own * (1 + 2**-7), given, own)
    return dataclasses.replace(stats, total_norm=total.to(stats.total_norm.dtype))


def _name(index: int, group: str) -> str:
    return f"{index}/{group}" if group else str(index)


def _policies(pieces: list[GradStats]) -> dict[str, Any] | None:
    """The facts of all pieces as those of groups."""
    if all(piece.policy is None for piece in pieces):
        return None
    found: dict[str, Any] = {}
    for index, piece in enumerate(pieces):
        facts = {k: v for k, v in (piece.policy or {}).items() if k != "on_nonfinite"}
        found.update({_name(index, name): own for name, own in facts.get("groups", {"": facts}).items()})
    kinds = {piece.policy["on_nonfinite"] for piece in pieces if piece.policy}
    return {"groups": found, **({"on_nonfinite": kinds.pop()} if len(kinds) == 1 else {})}


def _groups(pieces: list[GradStats]) -> dict[str, GroupStats] | None:
    found: dict[str, GroupStats] = {}
    for index, piece in enumerate(pieces):
        if piece.groups:
            found.update({_name(index, name): own for name, own in piece.groups.items()})
        elif piece.policy and piece.clip_coef is not None:
            own = GroupStats(piece.names, piece.total_norm, piece.clip_coef, piece.threshold)
            found[_name(index, "")] = own
    return found or None


def _factors(piece: GradStats, device: torch.device) -> Tensor:
    if piece._factor is not None:
        return piece._factor.to(device, torch.float64, non_blocking=True)
    coef = 1.0 if piece.clip_coef is None else piece.clip_coef.to(device, torch.float64, non_blocking=True)
    return torch.ones(len(piece), dtype=torch.float64, device=device) * coef


def _together(totals: Tensor, norm_type: float) -> Tensor:
    wide = totals if totals.device.type == "mps" else totals.double()
    total = wide.sum() if norm_type == 0 else torch.linalg.vector_norm(wide, norm_type)
    return total.to(totals.dtype)


def _common(thresholds: list[Any]) -> Any:
    """One limit for all, or None."""
    head = thresholds[0]
    same = all(limit is head or (isinstance(limit, float) and limit == head) for limit in thresholds)
    return head if same else None
