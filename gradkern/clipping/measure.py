"""`measure`: the statistics of one pass, without clipping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradkern.clipping import route, verify
from gradkern.kernels import torch_ops
from gradkern.kernels.extension import DISABLED, VERIFY, C
from gradkern.params.arguments import as_number, as_positive
from gradkern.params.names import NamedParameters, elements_of, first_rows, resolve
from gradkern.params.stats import GradStats

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def as_stats(
    columns: dict[str, Any],
    names: tuple[str, ...],
    params: Sequence[Tensor],
    norm_type: float,
    inv_scale: float = 1.0,
) -> GradStats:
    """GradStats from the columns that the extension (or the fallback) returns."""
    numel = columns.pop("numel", None)  # the compiled route has it already
    columns.pop("decision_norm", None)
    identities = tuple(map(id, params))
    return GradStats(
        names=names,
        numel=tuple(map(elements_of, params)) if numel is None else numel,
        has_grad=tuple(columns.pop("has_grad")),
        norm_type=norm_type,
        inv_scale=inv_scale,
        first=first_rows(identities),
        _identities=() if torch.compiler.is_compiling() else identities,
        **columns,
    )


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
    grouped = process_group is not None or pp_group is not None
    columns = None if DISABLED or grouped else C.measure(tensors, norm_type, bool(count_zeros), scale, names)
    if columns is None and (grouped or route.is_distributed(tensors)):
        together = route.together(
            tensors,
            [p.grad for p in tensors],
            process_group=process_group,
            pp_group=pp_group,
            operation="measure",
            names=names,
        )
        with torch.no_grad():
            columns = together.columns(norm_type, bool(count_zeros), scale)
        del columns["nonfinite_total"]
    if VERIFY and columns is not None and not grouped:
        verify.check_rows("measure", verify.snapshot(tensors), tensors, columns, norm_type, scale)
    if columns is None:
        with torch.no_grad():
            columns = torch_ops.measure(tensors, norm_type, bool(count_zeros), scale)
    return as_stats(columns, names, tensors, norm_type, scale)
