"""The multi-tensor functions of Apex (`amp_C`) and Transformer Engine, with the same signatures.

Code written for those packages runs without building them, on CPU and CUDA:

    from gradkern.compat import multi_tensor_applier, multi_tensor_l2norm, multi_tensor_scale

The tensors of a list may have different dtypes, be empty, or have more than 2^31 elements. Norms are
accumulated in float64 and returned in float32. The functions do not synchronise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradkern.kernels.backend import C
from gradkern.kernels.scale import scale_

__all__ = [
    "multi_tensor_applier",
    "multi_tensor_l2norm",
    "multi_tensor_scale",
    "multi_tensor_scale_tensor",
    "multi_tensor_unscale_l2norm",
]

#: Apex's default. The functions here ignore it.
CHUNK_SIZE = 2048 * 32


def multi_tensor_applier(
    op: Callable[..., Any], noop_flag_buffer: Tensor, tensor_lists: Sequence[Sequence[Tensor]], *args: Any
) -> Any:
    """Return ``op(chunk_size, noop_flag_buffer, tensor_lists, *args)``, as Apex's object of this name does.

    Args:
        op: one of the functions of this module.
        noop_flag_buffer, tensor_lists, args: its arguments after `chunk_size`.
    """
    return op(CHUNK_SIZE, noop_flag_buffer, tensor_lists, *args)


@torch.no_grad()
def multi_tensor_l2norm(
    chunk_size: int,
    noop_flag: Tensor,
    tensor_lists: Sequence[Sequence[Tensor]],
    per_tensor: bool | None = False,
) -> tuple[Tensor, Tensor]:
    """The L2 norm of all tensors of a list together, and of each tensor.

    Args:
        chunk_size: ignored.
        noop_flag: int32 [1], set to 1 if the norm is not finite.
        tensor_lists: a list with one list of tensors.
        per_tensor: whether to return the norm of each tensor.

    Returns:
        The norm of all tensors, float32 [1], and the norm of each, float32 [N] (empty without `per_tensor`),
        on the tensors' device.
    """
    return _l2norm(noop_flag, tensor_lists, None, bool(per_tensor))


@torch.no_grad()
def multi_tensor_unscale_l2norm(
    chunk_size: int,
    noop_flag: Tensor,
    tensor_lists: Sequence[Sequence[Tensor]],
    inv_scale: Tensor,
    per_tensor: bool | None = False,
) -> tuple[Tensor, Tensor]:
    """`multi_tensor_l2norm` of the tensors multiplied by `inv_scale`. The tensors are not changed.

    Args:
        chunk_size, noop_flag, tensor_lists, per_tensor: as in `multi_tensor_l2norm`.
        inv_scale: 1 / loss scale: a tensor with one element.

    Returns:
        As `multi_tensor_l2norm`.
    """
    return _l2norm(noop_flag, tensor_lists, inv_scale, bool(per_tensor))


@torch.no_grad()
def multi_tensor_scale(
    chunk_size: int, noop_flag: Tensor, tensor_lists: Sequence[Sequence[Tensor]], scale: float | Tensor
) -> None:
    """Write each tensor of the first list, multiplied by `scale`, to that of the second list.

    Args:
        chunk_size: ignored.
        noop_flag: int32 [1], set to 1 if an element of a source is not finite.
        tensor_lists: the sources and the destinations, with equal shapes. Dtypes may differ. A destination
            may be its source.
        scale: a number, or a tensor with one element.

    Raises:
        ValueError: the lists differ in length, or a source and its destination in shape. Nothing is written.
    """
    sources, targets = tensor_lists[0], tensor_lists[1]
    if not sources:
        return
    for source, target in zip(sources, targets, strict=True):
        if source.shape != target.shape:
            raise ValueError(
                f"[multi_tensor_scale] tensor_lists: expected equal shapes, got {tuple(source.shape)} and "
                f"{tuple(target.shape)}"
            )
    _, _, bad = _norms(sources)
    _set_where(noop_flag, bad)
    factor = torch.as_tensor(scale, dtype=torch.float64).to(sources[0].device, non_blocking=True).reshape(())
    if any(source.data_ptr() != target.data_ptr() for source, target in zip(sources, targets)):
        for source, target in zip(sources, targets):
            wide = torch.float64 if source.dtype == torch.float64 else torch.float32
            target.copy_(source.to(wide) * factor.to(wide))
        return
    scale_(list(targets), list(targets), factor)


multi_tensor_scale_tensor = multi_tensor_scale


def _l2norm(
    noop_flag: Tensor, tensor_lists: Sequence[Sequence[Tensor]], inv_scale: Tensor | None, per_tensor: bool
) -> tuple[Tensor, Tensor]:
    tensors = tensor_lists[0]
    if not tensors:
        return noop_flag.new_zeros(1, dtype=torch.float32), noop_flag.new_zeros(0, dtype=torch.float32)
    total, rows, _ = _norms(tensors)
    if inv_scale is not None:
        factor = inv_scale.to(total.device, non_blocking=True).reshape(()).abs()
        total, rows = total * factor, rows * factor
    total = total.to(torch.float32).reshape(1)
    _set_where(noop_flag, ~total.isfinite())
    return total, rows.to(torch.float32) if per_tensor else total.new_zeros(0)


def _norms(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The norm of all as decisions see it, that of each, and whether an element is not finite (0-d bool)."""
    columns = C.measure_gradients(list(tensors), 2.0, False, 1.0, None)
    if columns is not None:
        return columns["decision_norm"], columns["l2_norm"].double(), columns["nonfinite"].sum() > 0
    rows = torch.stack([torch.linalg.vector_norm(t.double()).to(tensors[0].device) for t in tensors])
    bad = torch.stack([~t.isfinite().all().to(tensors[0].device) for t in tensors]).any()
    return torch.linalg.vector_norm(rows), rows, bad


def _set_where(flag: Tensor, condition: Tensor) -> None:
    flag.masked_fill_(condition.to(flag.device, non_blocking=True), 1)
