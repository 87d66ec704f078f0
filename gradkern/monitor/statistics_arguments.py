"""Checks of the statistics given to `record` against its other arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from gradkern.monitor.models.combine import combined
from gradkern.params.arguments import as_positive
from gradkern.params.stats import GradStats

#: The phase of norms that do not come from a clip, by the argument `after_clip` of `record`.
PHASE_OF = {None: "measured", False: "before_clip", True: "after_clip"}


def check_statistics(stats: Any, inv_scale: Any, after_clip: Any) -> tuple[GradStats | None, float | None]:
    """Check the arguments of `record`.

    Returns:
        The statistics, those of a step that was clipped in pieces combined; and `inv_scale` as a number.

    Raises:
        TypeError, ValueError: an argument is invalid or contradicts the statistics.
    """
    if stats is not None and not isinstance(stats, GradStats):
        stats = combined(as_pieces(stats))
    if not (after_clip is None or isinstance(after_clip, (bool, np.bool_))):
        raise TypeError(f"[GradMonitor.record] after_clip: expected True, False or None, got {after_clip!r}")
    if inv_scale is not None:
        inv_scale = as_positive("GradMonitor.record", "inv_scale", inv_scale)
    if stats is not None:
        _check_contradictions(stats, inv_scale, after_clip)
    return stats, inv_scale


def _check_contradictions(stats: GradStats, inv_scale: float | None, after_clip: Any) -> None:
    if after_clip and stats.clip_coef is not None:
        raise ValueError(
            "[GradMonitor.record] after_clip: contradicts the statistics, which come from clip_() and are "
            "from before clipping; leave it out"
        )
    if inv_scale is None:
        return
    if isinstance(stats.inv_scale, Tensor):
        raise ValueError(
            f"[GradMonitor.record] inv_scale: the statistics include the scaler's scale already, got "
            f"{inv_scale!r}; leave it out"
        )
    if inv_scale != stats.inv_scale:
        raise ValueError(
            f"[GradMonitor.record] inv_scale: the statistics were measured with {stats.inv_scale!r}, got "
            f"{inv_scale!r}; pass inv_scale to measure() instead"
        )


def _no_statistics(given: Any) -> TypeError:
    return TypeError(
        f"[GradMonitor.record] stats: expected GradStats, got {type(given).__name__}; pass what "
        "clipper.clip_() or gradkern.measure(model) returned, and the loss as loss=…"
    )


def as_pieces(pieces: Any) -> list[GradStats]:
    """Statistics of a step that was clipped in pieces; no parameter is in two of them.

    Raises:
        TypeError: a piece is not a GradStats.
        ValueError: there is none, their orders differ, or a parameter is in two.
    """
    if not isinstance(pieces, (list, tuple)):
        raise _no_statistics(pieces)
    for index, piece in enumerate(pieces):
        if type(piece) is not GradStats:
            raise TypeError(
                f"[GradMonitor.record] stats[{index}]: expected GradStats, got {type(piece).__name__}"
            )
    if not pieces or len({piece.norm_type for piece in pieces}) > 1:
        raise ValueError("[GradMonitor.record] stats: expected one or more GradStats with the same norm_type")
    seen: dict[int, str] = {}
    for piece in pieces:
        for identity, name in zip(piece._identities, piece.names):
            if identity in seen:
                raise ValueError(f"[GradMonitor.record] stats: {name!r} is in two of the GradStats")
        seen.update(zip(piece._identities, piece.names))
    return list(pieces)
