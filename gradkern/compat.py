"""The multi-tensor functions of Apex (`amp_C`) and Transformer Engine with their call signatures.

For code written against those, on CPU and CUDA, without building either:

    from gradkern.compat import multi_tensor_applier, multi_tensor_l2norm, multi_tensor_scale

Tensors of a list may differ in dtype, be empty, or hold more than 2^31 elements. Norms are accumulated in
float64 and returned in float32. Nothing here synchronises.
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

#: Handed to the functions, which have no use for it: Apex's default.
CHUNK_SIZE = 2048 * 32


def multi_tensor_applier(
    op: Callable[..., Any], noop_flag_buffer: Tensor, tensor_lists: Sequence[Sequence[Tensor]], *args: Any
) -> Any:
    """Call ``op(chunk_size, noop_flag_buffer, tensor_lists, *args)``, as Apex's object of this name does."""
    return op(CHUNK_SIZE, noop_flag_buffer, tensor_lists, *args)


@torch.no_grad()
def multi_tensor_l2norm(
    chunk_size: int,
    noop_flag: Tensor,
    tensor_lists: Sequence[Sequence[Tensor]],
    per_tensor: bool | None = False,
) -> tuple[Tensor, Tensor]:
    """The L2 norm of all tensors of a list together, and of each.

    Args:
        chunk_size: not used.
        noop_flag: int32 [1], set to 1 where the norm is not finite.
        tensor_lists: one list of tensors.
        per_tensor: whether each tensor's norm is wanted.

    Returns:
        float32 [1], and float32 [N] (empty without `per_tensor`), on the tensors' device.
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
    """`multi_tensor_l2norm` of the tensors times `inv_scale`; the tensors stay as they are.

    Args:
        inv_scale: one number, 1 / loss scale, as a tensor.
    """
    return _l2norm(noop_flag, tensor_lists, inv_scale, bool(per_tensor))


@torch.no_grad()
def multi_tensor_scale(
    chunk_size: int, noop_flag: Tensor, tensor_lists: Sequence[Sequence[Tensor]], scale: float | Tensor
) -> None:
    """Write each tensor of the first list times `scale` into that of the second, which may be the same.

    Args:
        chunk_size: not used.
        noop_flag: int32 [1], set to 1 where an element to be scaled is not finite.
        tensor_lists: sources and destinations, of the same shapes; dtypes may differ.
        scale: a number, or a tensor of one element on the tensors' device.
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
