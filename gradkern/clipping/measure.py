"""`measure`: the statistics of one pass, without clipping."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradkern.clipping import ladder
from gradkern.clipping.ladder import RankGroups
from gradkern.params.arguments import as_number, as_positive
from gradkern.params.names import NamedParameters, elements_of, first_rows, resolve
from gradkern.params.stats import GradStats

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def measure(
    params: NamedParameters,
    *,
    norm_type: float = 2.0,
    count_zeros: bool = False,
    inv_scale: float | Tensor | None = None,
    process_group: ProcessGroup | None = None,
    pp_group: ProcessGroup | None = None,
) -> GradStats:
    """Norm, largest magnitude and non-finite count of every gradient, and the total norm: one read.

    Args:
        params: a Module, an iterable of (name, Parameter) pairs, or an iterable of Parameters (then
            named "0", "1", …).
        norm_type: order of `norm` and `total_norm`, as in `clip_grad_norm_`; the L2 norm is always there
            besides.
        count_zeros: count zero elements too, of sparse gradients the stored ones; costs a little.
        inv_scale: a positive number: the reported norms are of ``gradient * inv_scale``; 1 / loss scale,
            say. The gradients themselves are not touched.
        process_group, pp_group: as in `clip_grad_norm_`.

    Returns:
        GradStats, its tensors on the gradients' device. Over ranks, rows of DTensors and totals are
        the same on every rank of a mesh; rows of plain tensors and `has_grad` are this rank's.

    Raises:
        TypeError, ValueError: bad arguments, with the position and name of the offending entry.

    Notes:
        Writes nothing. No host-device synchronisation, unless `inv_scale` is a tensor on a device.
    """
    norm_type = as_number("measure", "norm_type", norm_type)
    scale = 1.0 if inv_scale is None else as_positive("measure", "inv_scale", inv_scale)
    names, tensors = resolve("measure", params)
    groups = RankGroups(process_group, pp_group)
    with torch.no_grad():
        measured = ladder.measure("measure", tensors, names, norm_type, bool(count_zeros), scale, groups)
    numel = tuple(map(elements_of, tensors)) if measured.numel is None else measured.numel
    identities = tuple(map(id, tensors))
    known = () if torch.compiler.is_compiling() else identities
    return GradStats.of(measured, names, numel, first_rows(identities), known, norm_type, inv_scale=scale)
