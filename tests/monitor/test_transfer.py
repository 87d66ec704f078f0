"""Copies to the host, tested without a device: streams, events and waiting."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from gradkern.history.format import EXPONENTS, FORMATS
from gradkern.monitor.captures import transfer
from gradkern.monitor.captures.capture import Presence
from gradkern.monitor.captures.transfer import PinnedPool, send, together
from gradkern.monitor.periodic.capture import HistogramCapture, WeightsCapture
from tests.support.loops import layout


class Device:
    """Tensors that claim to be on a CUDA device. Calls of CUDA are noted and not made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.copied: list[torch.device] = []
        self.events: list[Event] = []
        self.buffers = 0
        monkeypatch.setattr(transfer, "_copy", self._copy)
        monkeypatch.setattr(transfer, "_is_capturing", lambda: False)
        monkeypatch.setattr(transfer, "_current_stream", lambda device: ("stream of", device))
        monkeypatch.setattr(transfer, "_new_event", self._new_event)
        monkeypatch.setattr(transfer, "_new_buffer", self._new_buffer)

    def tensor(self, index: int, values: object, dtype: torch.dtype = torch.float32) -> There:
        return There(torch.tensor(values, dtype=dtype), torch.device("cuda", index))

    def _copy(self, place: torch.Tensor, tensor: There | torch.Tensor) -> None:
        self.copied.append(tensor.device)
        place.copy_(getattr(tensor, "here", tensor))

    def _new_event(self) -> Event:
        self.events.append(Event())
        return self.events[-1]

    def _new_buffer(self, size: int) -> torch.Tensor:
        self.buffers += 1
        return torch.empty(size, dtype=torch.uint8)


class There:
    def __init__(self, here: torch.Tensor, device: torch.device) -> None:
        self.here, self.device = here, device

    def __getattr__(self, name: str) -> object:
        return getattr(self.here, name)


class Event:
    def __init__(self) -> None:
        self.streams: list[object] = []
        self.done = threading.Event()

    def record(self, stream: object) -> None:
        self.streams.append(stream)
        self.done.clear()

    def query(self) -> bool:
        return self.done.is_set()

    def synchronize(self) -> None:
        self.done.set()


@pytest.fixture
def device(monkeypatch):
    return Device(monkeypatch)


def test_each_device_has_its_event_on_its_own_stream(device):
    pool = PinnedPool()
    sent = [device.tensor(0, [1.0, 2.0]), device.tensor(1, [3], torch.int64), torch.tensor(4.0),
            device.tensor(0, 5.0)]  # fmt: skip
    arriving = send(sent, pool)
    assert [t.tolist() for t in arriving.tensors] == [[1.0, 2.0], [3], 4.0, 5.0]
    first, second = device.events
    assert first.streams == [("stream of", torch.device("cuda", 0))]
    assert second.streams == [("stream of", torch.device("cuda", 1))]
    first.done.set()
    assert not arriving.arrived()
    second.done.set()
    assert arriving.arrived()
    first.done.clear()
    arriving.wait()
    assert arriving.arrived()


def test_several_have_arrived_when_each_has(device):
    pool = PinnedPool()
    first, second = send([device.tensor(0, [1.0])], pool), send([device.tensor(1, [2.0])], pool)
    both = together([first, transfer.HERE, second])
    device.events[0].done.set()
    assert first.arrived() and not both.arrived()
    both.wait()
    assert both.arrived() and together([transfer.HERE, transfer.HERE]) is transfer.HERE
    both.release()
    send([device.tensor(0, [1.0])], pool)
    send([device.tensor(0, [1.0])], pool)
    assert device.buffers == 2  # both were given back


def test_buffers_and_events_are_used_again(device):
    pool = PinnedPool()
    for _ in range(5):
        arriving = send([device.tensor(0, [1.0] * 9), device.tensor(1, [1.0])], pool)
        arriving.wait()
        arriving.release()
    assert device.buffers == 1 and len(device.events) == 2
    assert [len(e.streams) for e in device.events] == [5, 5]
    send([device.tensor(0, [1.0] * 1000)], pool)
    assert device.buffers == 2  # a larger one replaces the small one
    send([device.tensor(0, [1.0])], pool)
    assert device.buffers == 3  # buffers in use are not reused


def test_a_graph_that_is_being_captured_is_refused(device, monkeypatch):
    monkeypatch.setattr(transfer, "_is_capturing", lambda: True)
    with pytest.raises(
        RuntimeError, match=r"\[GradMonitor.record\] cannot be captured in a CUDA graph: capture clip_"
    ):
        send([device.tensor(0, [1.0])], PinnedPool())
    assert not device.buffers and not device.copied


def test_what_is_on_the_host_is_kept_as_it_is(device):
    tensors = [torch.ones(3), torch.tensor(2.0)]
    arriving = send(tensors, PinnedPool())
    assert arriving.tensors == tensors and arriving.arrived() and not device.copied


def test_columns_of_several_devices_come_together_on_the_host(device):
    parts = [
        ([0, 3], (device.tensor(0, [1.0, 2.0], torch.float64), device.tensor(0, [0.1, 0.2]))),
        ([1], (device.tensor(1, [4.0], torch.float64), device.tensor(1, [0.4]))),
    ]
    capture = WeightsCapture(7, layout(4), False, [1.0, 10.0, 1.0, 2.0], parts, PinnedPool())
    assert not capture.arriving.arrived()
    capture.arriving.wait()
    row = capture.row(Presence())
    np.testing.assert_array_equal(row.weight_norm, np.array([1, 40, np.nan, 4], np.float32))
    np.testing.assert_array_equal(row.ratio, np.array([0.1, 0.4, np.nan, 0.2], np.float32))
    assert row.weight_norm.dtype == row.ratio.dtype == np.float32

    counts = [[float(b) for b in range(len(EXPONENTS))]]
    under = [[0.5] * len(FORMATS)]
    parts = [([2], (device.tensor(1, counts, torch.int64), device.tensor(1, under)))]
    capture = HistogramCapture(7, layout(4), parts, PinnedPool())
    capture.arriving.wait()
    row = capture.row(Presence())
    assert row.counts[2].tolist() == list(range(len(EXPONENTS))) and not row.counts[[0, 1, 3]].any()
    assert (row.underflow[2] == 0.5).all() and np.isnan(row.underflow[[0, 1, 3]]).all()
