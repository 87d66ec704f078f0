"""log2 histograms of gradient magnitudes, from a fixed sample of elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradkern.monitor.sample import Sample

#: Bin b holds magnitudes in [2**e, 2**(e+1)); the first everything smaller but zero, the last
#: everything larger. Zero, NaN and inf are in none.
EXPONENTS = tuple(range(-60, 20))

#: Number formats, and the largest magnitude that rounds to zero in them: half the smallest
#: subnormal (ties go to even, that is to zero).
FORMATS = {"fp16": 2.0**-25, "bf16": 2.0**-134, "fp8_e4m3": 2.0**-10, "fp8_e5m2": 2.0**-17}


@torch.no_grad()
def histogram(
    grads: Sequence[Tensor | None], sample: Sample, coef: Tensor | None, inv_scale: float
) -> tuple[Tensor, Tensor]:
    """Histograms of gradients as they were before clipping.

    Args:
        grads: N gradients, None where there is none.
        sample: made for the N parameters.
        coef: 0-d, what the gradients have been multiplied by; it is divided out. None for 1.
        inv_scale: what the magnitudes are multiplied by.

    Returns:
        counts int64 [N, len(EXPONENTS)] and underflow float32 [N, len(FORMATS)]: the fraction of
        the non-zero sampled elements that round to zero, NaN where there is none. On the CPU for
        gradients on several devices, else on their device. No synchronisation.
    """
    pieces = sample.take(grads)
    home = pieces[0].values.device if len(pieces) == 1 else torch.device("cpu")
    counts = torch.zeros(len(grads), len(EXPONENTS), dtype=torch.int64, device=home)
    underflow = torch.full((len(grads), len(FORMATS)), float("nan"), dtype=torch.float32, device=home)
    for piece in pieces:
        factor = 1.0 if coef is None else 1.0 / coef.to(piece.values.device, torch.float64)
        magnitude = (piece.values.double() * (inv_scale * factor)).abs()
        usable = (magnitude > 0) & magnitude.isfinite()
        _, exponent = torch.frexp(magnitude)  # magnitude = m * 2**exponent, m in [0.5, 1)
        bins = (exponent.long() - 1 - EXPONENTS[0]).clamp(0, len(EXPONENTS) - 1)
        lengths = torch.tensor(piece.lengths).to(home if len(pieces) == 1 else bins.device, non_blocking=True)
        index = torch.arange(len(piece.lengths), device=bins.device)
        owner = torch.repeat_interleave(index, lengths, output_size=len(piece.values))
        found = torch.zeros(len(piece.lengths) * len(EXPONENTS), dtype=torch.int64, device=bins.device)
        found.index_add_(0, owner * len(EXPONENTS) + bins, usable.long())
        rows = torch.tensor(piece.rows).to(home, non_blocking=True)
        counts[rows] = found.view(-1, len(EXPONENTS)).to(home)
        there = piece.sums(usable)
        lost = torch.stack([piece.sums(usable & (magnitude <= t)) for t in FORMATS.values()], dim=1)
        underflow[rows] = (lost / there[:, None]).float().to(home)
    return counts, underflow
