"""Joining the rows of several models into the row of a step. Runs on the writing thread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradkern.history.named import loss_of
from gradkern.history.rows import GroupValues, HistogramRow, Row, StepRow, WeightsRow, ZerosRow
from gradkern.monitor.captures.joint_layouts import JointLayouts


def join_rows(rows: Mapping[str, Row], layouts: JointLayouts, norm_type: float) -> Row:
    """One row for rows of the same kind and step.

    Args:
        rows: by the name of the part.
        norm_type: order of the total norms.
    """
    found: list[Any] = list(rows.values())
    layout, head = layouts.of([row.layout for row in found]), found[0]

    def columns(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(row, name) for row in found])

    if isinstance(head, StepRow):
        return _join_steps(
            {part: row for part, row in rows.items() if isinstance(row, StepRow)}, layout, norm_type
        )
    if isinstance(head, WeightsRow):
        exact = all(row.exact for row in found)
        return WeightsRow(head.step, layout, exact, columns("weight_norm"), columns("ratio"))
    if isinstance(head, HistogramRow):
        return HistogramRow(head.step, layout, columns("counts"), columns("underflow"))
    return ZerosRow(head.step, layout, columns("nonzero"), columns("zeros"))


def _join_steps(parts: Mapping[str, StepRow], layout: Any, norm_type: float) -> StepRow:
    rows = list(parts.values())
    head, last = rows[0], max(rows, key=lambda row: row.time)
    coefs = [row.clip_coef for row in rows if row.clip_coef is not None]
    phases, scales = {row.phase for row in rows}, {row.inv_scale for row in rows}
    return StepRow(
        step=head.step,
        time=min(row.time for row in rows),
        layout=layout,
        norm=np.concatenate([row.norm for row in rows]),
        max_abs=np.concatenate([row.max_abs for row in rows]),
        total_norm=_together([row.total_norm for row in rows], norm_type),
        l2_norm=_l2_norms(rows),
        nonfinite=_filled([row.nonfinite for row in rows], rows, 0),
        zeros=_filled([row.zeros for row in rows], rows, -1),
        clip_coef=float(np.min(coefs)) if coefs else None,  # NaN if one is
        skipped=any(row.skipped for row in rows),
        phase=head.phase if len(phases) == 1 else "measured",
        inv_scale=head.inv_scale if len(scales) == 1 else 1.0,
        lr=last.lr,
        threshold=head.threshold if len({row.threshold for row in rows}) == 1 else None,
        factor=_factors(rows) if coefs else None,
        extra=_extra(parts),
        groups=_groups(parts),
    )


def add_parts(row: StepRow, parts: Sequence[str], norm_type: float) -> StepRow:
    """The row of a step of all models together, with a group for each of them."""
    own = (row.norm != -1) & ~row.layout.repeats
    for part in parts:
        named = np.array([name.startswith(f"{part}.") for name in row.layout.names])
        if (named & own).any():
            coef = math.nan if row.clip_coef is None else row.clip_coef
            factor = coef if row.factor is None else float(np.min(row.factor[named & own]))
            row.groups[part] = GroupValues(_together(row.norm[named & own], norm_type), factor, math.nan)
    return row


def _together(norms: Sequence[float] | NDArray[Any], norm_type: float) -> float:
    """The norm of norms of one order."""
    values = np.asarray(norms, dtype=np.float64)
    if norm_type == 0:
        return float(values.sum())
    if norm_type < 0 and not values.all():
        return 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.linalg.norm(values, norm_type))


def _l2_norms(rows: Sequence[StepRow]) -> NDArray[Any] | None:
    if all(row.l2_norm is None for row in rows):
        return None
    return np.concatenate([row.norm if row.l2_norm is None else row.l2_norm for row in rows])


def _filled(columns: Sequence[Any], rows: Sequence[StepRow], fill: int) -> NDArray[np.int64] | None:
    """Columns together, `fill` where a row has none; None if no row has one."""
    if all(column is None for column in columns):
        return None
    return np.concatenate(
        [
            np.full(len(row.norm), fill, dtype=np.int64) if column is None else column
            for column, row in zip(columns, rows)
        ]
    )


def _factors(rows: Sequence[StepRow]) -> NDArray[np.float32]:
    """What each gradient was multiplied by: 1 in a part that was not clipped."""

    def of(row: StepRow) -> NDArray[Any]:
        if row.factor is not None:
            return row.factor
        coef = 1.0 if row.clip_coef is None else row.clip_coef
        return np.full(len(row.norm), coef, dtype=np.float32)

    return np.concatenate([of(row) for row in rows]).astype(np.float32)


def _extra(parts: Mapping[str, StepRow]) -> dict[str, float]:
    """The caller's numbers, and the loss of each part as "loss/<part>"."""
    found: dict[str, float] = {}
    for part, row in parts.items():
        if row.loss is not None:
            found[loss_of(part)] = row.loss
        found.update(row.extra)
    return found


def _groups(parts: Mapping[str, StepRow]) -> dict[str, GroupValues]:
    """Each part is a group; the groups of its clipper are "<part>/<group>"."""
    found: dict[str, GroupValues] = {}
    for part, row in parts.items():
        coef = math.nan if row.clip_coef is None else row.clip_coef
        limit = math.nan if row.threshold is None else row.threshold
        found[part] = GroupValues(row.total_norm, coef, limit)
        found.update({f"{part}/{group}": values for group, values in row.groups.items()})
    return found
