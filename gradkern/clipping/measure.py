"""`measure`: statistics of gradients without clipping."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradkern.clipping import route
from gradkern.clipping.route import RankGroups
from gradkern.params.arguments import as_order, as_positive
from gradkern.params.names import NamedParameters, elements_of, identify, resolve
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
    """Measure the norm, largest magnitude and non-finite count of every gradient, and the total norm.

    Args:
        params: a Module, (name, Parameter) pairs, or Parameters, which are named "0", "1", …. Shapes and
            dtypes as in `clip_grad_norm_`.
        norm_type: order of `norm` and `total_norm`, as in `clip_grad_norm_`. The L2 norm is always measured
            too.
        count_zeros: count zero elements too, which costs a little. Of sparse gradients the stored elements
            are counted.
        inv_scale: a positive number, for example 1 / loss scale: the norms are those of
            ``gradient * inv_scale``. The gradients are not changed.
        process_group, pp_group: as in `clip_grad_norm_`.

    Returns:
        GradStats with its tensors on the gradients' device. Over ranks, totals and rows of DTensors are the
        same on every rank of a mesh; rows of plain tensors and `has_grad` are this rank's.

    Raises:
        TypeError, ValueError: an invalid argument. The message gives the position and name of the entry.

    Warns:
        GradkernWarning: all parameters are frozen.

    Notes:
        One read, no write, deterministic. Synchronises only if `inv_scale` is a tensor on a device, and where
        `clip_grad_norm_` does.
    """
    norm_type = as_order("measure", norm_type)
    scale = 1.0 if inv_scale is None else as_positive("measure", "inv_scale", inv_scale)
    names, tensors = resolve("measure", params)
    groups = RankGroups(process_group, pp_group)
    with torch.no_grad():
        measured = route.measure("measure", tensors, names, norm_type, bool(count_zeros), scale, groups)
    numel = tuple(map(elements_of, tensors)) if measured.numel is None else measured.numel
    if not groups.named and not torch.compiler.is_compiling():  # other ranks may have gradients
        route.misuse.check_frozen("measure", tensors, measured.has_grad)
    identities, first = identify(tensors)
    known = () if torch.compiler.is_compiling() else identities
    return GradStats.of(measured, names, numel, first, known, norm_type, inv_scale=scale)
