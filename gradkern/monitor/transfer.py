"""Getting small tensors to the host without waiting for the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

_ALIGN = 16


class Event(Protocol):
    """What is needed of torch.cuda.Event."""

    def record(self) -> None: ...
    def query(self) -> bool: ...
    def synchronize(self) -> None: ...


class Arriving:
    """Tensors on their way to the host."""

    __slots__ = ("_buffer", "_event", "_pool", "tensors")

    def __init__(
        self, tensors: list[Tensor], event: Event | None, buffer: Tensor | None, pool: PinnedPool | None
    ) -> None:
        self.tensors = tensors
        self._event, self._buffer, self._pool = event, buffer, pool

    def arrived(self) -> bool:
        """Whether `tensors` may be read."""
        return self._event is None or self._event.query()

    def wait(self) -> None:
        """Until they may be."""
        if self._event is not None:
            self._event.synchronize()

    def release(self) -> None:
        """Give the buffer back: what is in `tensors` is not looked at any more."""
        if self._pool is not None and self._buffer is not None:
            self._pool.put(self._buffer, self._event)
            self._buffer = None


class PinnedPool:
    """Pinned buffers of one size, used again and again. Safe between two threads."""

    def __init__(self) -> None:
        self._free: deque[tuple[Tensor, Any]] = deque()
        self._size = 0

    def get(self, size: int) -> tuple[Tensor, Any]:
        """A buffer of at least `size` bytes and an event."""
        if size > self._size:
            self._size = size
        while self._free:
            buffer, event = self._free.popleft()
            if buffer.numel() >= size:  # smaller ones are of an earlier layout: let go
                return buffer, event
        return self._new(self._size)

    def put(self, buffer: Tensor, event: Any) -> None:
        self._free.append((buffer, event))

    def _new(self, size: int) -> tuple[Tensor, Any]:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True), torch.cuda.Event()  # type: ignore[no-untyped-call]


def send(tensors: Sequence[Tensor], pool: PinnedPool) -> Arriving:
    """Start copying `tensors` to the host; does not wait.

    Tensors on the CPU are kept as they are. Those of a CUDA device go to pinned memory on the
    current stream, with an event behind them; those of other devices are copied at once (which
    waits for that device).
    """
    if all(t.device.type == "cpu" for t in tensors):
        return Arriving(list(tensors), None, None, None)
    if not all(t.device.type in ("cpu", "cuda") for t in tensors):
        return Arriving([t.detach().cpu() for t in tensors], None, None, None)
    return _send_pinned(tensors, pool)


def _send_pinned(tensors: Sequence[Tensor], pool: PinnedPool) -> Arriving:
    offsets, size = [], 0
    for tensor in tensors:
        offsets.append(size)
        size += -(-tensor.numel() * tensor.element_size() // _ALIGN) * _ALIGN
    buffer, event = pool.get(max(size, _ALIGN))
    here: list[Tensor] = []
    for tensor, offset in zip(tensors, offsets):
        length = tensor.numel() * tensor.element_size()
        place = buffer[offset : offset + length].view(tensor.dtype).view(tensor.shape)
        here.append(place.copy_(tensor.detach(), non_blocking=True))
    event.record()
    return Arriving(here, event, buffer, pool)
