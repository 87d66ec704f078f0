"""`Sample`: a fixed sample of elements of many tensors, taken with few operations."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gradkern._util import moved

EXACT_ELEMENTS = 1 << 20
ELEMENTS_EACH = 1024
WHOLE_ELEMENTS = 1 << 16  # of a vector


def stride_for(numel: int, shape: Sequence[int], most: int) -> int:
    """A stride that takes about `most` of the elements at most.

    It has no factor in common with any side of the tensor, so that it does not stay in one column.
    """
    stride = -(-numel // most)
    while stride > 1 and any(_shares_factor(stride, side) for side in shape if side > 1):
        stride += 1
    return stride


def _shares_factor(a: int, b: int) -> bool:
    while b:
        a, b = b, a % b
    return a > 1


class Sample:
    """A sample of every element if there are at most 2**20 in all, else of about 1,024 of each tensor, a
    constant stride apart.

    Of a DTensor the local part is sampled. Tensors without numbers in plain memory are left out: sparse,
    nested, meta and lazy ones, wrapper subclasses, and types that torch cannot convert (quantised, float4,
    bits).

    Args:
        vectors_whole: take every element of tensors with one dimension, if they have at most 65,536.
    """

    def __init__(self, tensors: Sequence[Tensor], vectors_whole: bool = False) -> None:
        flat = [elements(tensor) for tensor in tensors]
        self.exact = sum(0 if f is None else f.numel() for f in flat) <= EXACT_ELEMENTS
        self.strides = [
            1 if self.exact or f is None else stride_for(f.numel(), _sides(t), ELEMENTS_EACH)
            for f, t in zip(flat, tensors)
        ]
        if vectors_whole:
            small = [t.dim() == 1 and t.numel() <= WHOLE_ELEMENTS for t in tensors]
            self.strides = [1 if is_small else stride for is_small, stride in zip(small, self.strides)]
        numbers = [0 if f is None else f.numel() for f in flat]
        #: For each tensor, the factor from the norm of its sample to that of all its elements.
        self.factors = [math.sqrt(n / max(-(-n // s), 1)) for n, s in zip(numbers, self.strides)]
        self._lengths: dict[tuple[torch.device, tuple[int, ...]], Tensor] = {}

    def take(self, tensors: Sequence[Tensor | None]) -> list[Piece]:
        """The sampled elements, one piece per device; None is skipped.

        No synchronisation.
        """
        by_device: dict[torch.device, list[tuple[int, Tensor]]] = {}
        for row, tensor in enumerate(tensors):
            if tensor is None:
                continue
            flat = elements(tensor)
            if flat is not None:
                by_device.setdefault(flat.device, []).append((row, flat[:: self.strides[row]]))
        return [self._piece(device, entries) for device, entries in by_device.items()]

    def _piece(self, device: torch.device, entries: list[tuple[int, Tensor]]) -> Piece:
        parts = [part if part.dtype in _PROMOTED else part.float() for _, part in entries]
        counts = [len(part) for part in parts]
        key = device, tuple(counts)
        if key not in self._lengths:
            if len(self._lengths) >= _MOST_LENGTHS:
                self._lengths.clear()
            self._lengths[key] = torch.tensor(counts, device="cpu").to(device, non_blocking=True)
        return Piece([row for row, _ in entries], torch.cat(parts).float(), counts, self._lengths[key])


#: Types that `torch.cat` promotes to a common type.
_PROMOTED = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})

#: Sets of tensors whose lengths are kept on devices; which tensors have a gradient may vary.
_MOST_LENGTHS = 16


class Piece:
    """Sampled elements of the tensors `rows` on one device: flat float32 `values`, the next `counts` elements
    for each tensor; `lengths` are the counts as int64 on the device."""

    def __init__(self, rows: list[int], values: Tensor, counts: list[int], lengths: Tensor) -> None:
        self.rows, self.values, self.counts, self.lengths = rows, values, counts, lengths

    def sums(self, values: Tensor) -> Tensor:
        """float64 sum for each tensor of `values`, which is as long as `self.values`. Deterministic."""
        sums: Tensor = torch.segment_reduce(
            values.double(), "sum", lengths=self.lengths, unsafe=True, initial=0.0
        )
        return sums

    def owners(self) -> Tensor:
        """For each element, the position of its tensor in `rows`."""
        index = torch.arange(len(self.rows), device=self.values.device)
        return torch.repeat_interleave(index, self.lengths, output_size=len(self.values))


#: Statistics of some tensors on one device: their rows, and columns with an entry for each.
DeviceColumns = tuple[list[int], tuple[Tensor, ...]]


def local(tensor: Tensor) -> Tensor:
    """The local part of a DTensor; any other tensor itself. Detached."""
    to_local: Any = getattr(tensor, "to_local", None)
    return (tensor if to_local is None else to_local()).detach()


def elements(tensor: Tensor) -> Tensor | None:
    """The elements in memory order, without a copy where possible; None if there are no numbers in plain
    memory."""
    tensor = local(tensor)
    if not (_is_plain(tensor) and _has_numbers(tensor.dtype.to_real(), tensor.device.type)):
        return None
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.is_contiguous():
        return tensor.view(-1)
    if torch.ops.aten.is_non_overlapping_and_dense(tensor):
        return tensor.as_strided((tensor.numel(),), (1,))
    return tensor.reshape(-1)


def _is_plain(tensor: Tensor) -> bool:
    return not (
        torch.nn.parameter.is_lazy(tensor)
        or tensor.layout is not torch.strided
        or tensor.device.type == "meta"
        or tensor.is_quantized
        or is_traceable_wrapper_subclass(tensor)
    )


def _sides(tensor: Tensor) -> tuple[int, ...]:
    """The sides of `elements`, in which a complex number is two."""
    shape = tuple(local(tensor).shape)
    return (*shape, 2) if tensor.is_complex() else shape


@functools.cache
def _has_numbers(dtype: torch.dtype, device: str) -> bool:
    """Whether torch converts the type to float32. Tried once, since torch has no list of such types."""
    if dtype in _PROMOTED:
        return True
    try:
        torch.empty(1, dtype=dtype, device=device).float()
    except (RuntimeError, NotImplementedError):
        return False
    return True


if not TYPE_CHECKING:
    __getattr__ = moved.forward(__name__)  # names of 0.1
