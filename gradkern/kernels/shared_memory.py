"""Find gradients of a list that are the same, or that share memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def same_memory(tensor: Tensor) -> object:
    """A key that is equal for entries that are one gradient: the same tensor or the same view of memory.

    Entries with equal keys count once in a norm. All other entries count in full, even if they overlap. In
    either case each memory location is scaled once.
    """
    plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
    if not plain or tensor.is_nested or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def overlapping(tensors: Sequence[Tensor | None]) -> set[int]:
    """Positions of dense tensors that share some memory with another one without being the same view."""
    spans = []
    for position, t in enumerate(tensors):
        if t is not None and t.numel() and not isinstance(key := same_memory(t), int):
            reach = sum((n - 1) * s for n, s in zip(t.shape, t.stride())) + 1
            spans.append(
                (str(t.device), t.data_ptr(), t.data_ptr() + reach * t.element_size(), key, position)
            )
    found: set[int] = set()
    widest_span = None
    for span in sorted(spans, key=lambda s: s[:3]):
        if widest_span is None or span[0] != widest_span[0] or span[1] >= widest_span[2]:
            widest_span = span
            continue
        if span[3] != widest_span[3]:
            found |= {span[4], widest_span[4]}
        if span[2] > widest_span[2]:
            widest_span = span
    return found


def each_once(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """The tensors that are not None and not empty, each gradient once."""
    found: dict[object, Tensor] = {}
    for tensor in tensors:
        if tensor is not None and tensor.numel():
            found.setdefault(same_memory(tensor), tensor)
    return list(found.values())
