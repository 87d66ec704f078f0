"""Copies of small tensors to the host, without waiting for the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

_ALIGN = 16


class DeviceEvent(Protocol):
    """The methods of torch.cuda.Event that are used."""

    def record(self, stream: Any) -> None: ...
    def query(self) -> bool: ...
    def synchronize(self) -> None: ...


#: An event for each device that something is copied from.
Events = dict[torch.device, DeviceEvent]


class Arriving:
    """Tensors on their way to the host."""

    __slots__ = ("_buffer", "_events", "_pool", "tensors")

    def __init__(
        self,
        tensors: list[Tensor],
        events: Events,
        buffer: Tensor | None,
        pool: PinnedPool | None,
    ) -> None:
        self.tensors = tensors
        self._events, self._buffer, self._pool = events, buffer, pool

    def arrived(self) -> bool:
        """Whether `tensors` may be read."""
        return all(event.query() for event in self._events.values())

    def wait(self) -> None:
        """Wait until they may be read."""
        for event in self._events.values():
            event.synchronize()

    def release(self) -> None:
        """Return the buffer to the pool: `tensors` are no longer read."""
        if self._pool is not None and self._buffer is not None:
            self._pool.put(self._buffer, self._events)
            self._buffer = None


#: Nothing to wait for.
HERE = Arriving([], {}, None, None)


class _Together(Arriving):
    """Several `Arriving` as one."""

    __slots__ = ("_all",)

    def __init__(self, arriving: Sequence[Arriving]) -> None:
        super().__init__([], {}, None, None)
        self._all = arriving

    def arrived(self) -> bool:
        return all(one.arrived() for one in self._all)

    def wait(self) -> None:
        for one in self._all:
            one.wait()

    def release(self) -> None:
        for one in self._all:
            one.release()


def together(arriving: Sequence[Arriving]) -> Arriving:
    """Combine transfers into one that is ready when all are."""
    return HERE if all(one is HERE for one in arriving) else _Together(arriving)


class PinnedPool:
    """Reuses pinned buffers and their events. One thread may get buffers and another return them."""

    def __init__(self) -> None:
        self._free: deque[tuple[Tensor, Events]] = deque()
        self._size = 0

    def get(self, size: int, devices: Sequence[torch.device]) -> tuple[Tensor, Events]:
        """A buffer of at least `size` bytes and an event for each of the devices."""
        self._size = max(size, self._size)
        buffer, events = self._take(size)
        return buffer, {d: events[d] if d in events else _new_event() for d in devices}

    def _take(self, size: int) -> tuple[Tensor, Events]:
        while self._free:
            buffer, events = self._free.popleft()
            if buffer.numel() >= size:  # smaller ones, of an earlier layout, are dropped
                return buffer, events
        return _new_buffer(self._size), {}

    def put(self, buffer: Tensor, events: Events) -> None:
        self._free.append((buffer, events))


def send(tensors: Sequence[Tensor], pool: PinnedPool) -> Arriving:
    """Start copying `tensors` to the host; does not wait.

    Tensors on the CPU are kept as they are. Those of a CUDA device go to pinned memory, on the device's
    current stream and followed by an event. Those of other devices are copied at once, which waits for them.

    Raises:
        RuntimeError: a CUDA graph is being captured; nothing is copied.
    """
    kinds = {t.device.type for t in tensors}
    if kinds <= {"cpu"}:
        return Arriving(list(tensors), {}, None, None)
    if not kinds <= {"cpu", "cuda"}:
        return Arriving([t.detach().cpu() for t in tensors], {}, None, None)
    if _is_capturing():
        # A replay would write to a buffer that belongs to another step by then.
        raise RuntimeError(
            "[GradMonitor.record] cannot be captured in a CUDA graph: capture clip_(), and call record() "
            "with its statistics after each replay"
        )
    return _send_pinned(tensors, pool)


def _send_pinned(tensors: Sequence[Tensor], pool: PinnedPool) -> Arriving:
    offsets, size = [], 0
    for tensor in tensors:
        offsets.append(size)
        size += -(-tensor.numel() * tensor.element_size() // _ALIGN) * _ALIGN
    devices = list(dict.fromkeys(t.device for t in tensors if t.device.type != "cpu"))
    buffer, events = pool.get(max(size, _ALIGN), devices)
    here: list[Tensor] = []
    for tensor, offset in zip(tensors, offsets):
        length = tensor.numel() * tensor.element_size()
        place = buffer[offset : offset + length].view(tensor.dtype).view(tensor.shape)
        _copy(place, tensor)
        here.append(place)
    for device, event in events.items():
        event.record(_current_stream(device))
    return Arriving(here, events, buffer, pool)


# All calls of CUDA, so that the rest can be tested without a device.


def _is_capturing() -> bool:
    return torch.cuda.is_current_stream_capturing()


def _copy(place: Tensor, tensor: Tensor) -> None:
    place.copy_(tensor.detach(), non_blocking=True)  # on the current stream of the tensor's device


def _current_stream(device: torch.device) -> Any:
    return torch.cuda.current_stream(device)


def _new_event() -> DeviceEvent:
    event: DeviceEvent = torch.cuda.Event()  # type: ignore[no-untyped-call]
    return event


def _new_buffer(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)
