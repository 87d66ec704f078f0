"""log2 histograms of gradient magnitudes, from a fixed sample of elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradkern.history.format import EXPONENTS, FORMATS
from gradkern.monitor.sample import DeviceColumns, Piece, Sample


@torch.no_grad()
def histogram(
    grads: Sequence[Tensor | None], sample: Sample, coef: Tensor | None, inv_scale: float | Tensor
) -> list[DeviceColumns]:
    """Histograms of gradients as they were before clipping.

    Args:
        grads: N gradients, or None.
        sample: made for the N parameters.
        coef: 0-d; what the gradients were multiplied by, to be divided out. None for 1.
        inv_scale: factor on the magnitudes.

    Returns:
        For each device its rows, and there counts, int64 [rows, len(EXPONENTS)], and underflow, float32
        [rows, len(FORMATS)]: the fraction of the non-zero sampled elements that round to zero, NaN if there
        are none. No synchronisation if `coef` is on the gradients' device (but see `Sample.take`).
    """
    return [(piece.rows, _of_piece(piece, coef, inv_scale)) for piece in sample.take(grads)]


def _of_piece(piece: Piece, coef: Tensor | None, inv_scale: float | Tensor) -> tuple[Tensor, Tensor]:
    device = piece.values.device
    factor: float | Tensor = 1.0
    if coef is not None:
        factor = 1.0 / coef.to(device, torch.float64, non_blocking=True)
    if isinstance(inv_scale, Tensor):
        inv_scale = inv_scale.to(device, torch.float64, non_blocking=True)
    magnitude = (piece.values.double() * (inv_scale * factor)).abs()
    usable = (magnitude > 0) & magnitude.isfinite()
    _, exponent = torch.frexp(magnitude)  # magnitude = m * 2**exponent, m in [0.5, 1)
    bins = (exponent.long() - 1 - EXPONENTS[0]).clamp(0, len(EXPONENTS) - 1)
    counts = torch.zeros(len(piece.rows) * len(EXPONENTS), dtype=torch.int64, device=device)
    counts.index_add_(0, piece.owners() * len(EXPONENTS) + bins, usable.long())
    there = piece.sums(usable)
    lost = torch.stack([piece.sums(usable & (magnitude <= t)) for t in FORMATS.values()], dim=1)
    return counts.view(-1, len(EXPONENTS)), (lost / there[:, None]).float()
