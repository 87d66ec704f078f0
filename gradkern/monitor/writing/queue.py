"""`CaptureQueue`: captures on their way from the training thread to the writing thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from pathlib import Path

from gradkern.monitor.captures.capture import Capture
from gradkern.monitor.writing.warned import Warned

LIMIT_BYTES = 64 << 20
PATIENCE = 1.0  # seconds that `put` waits for room, once until there is room again


class CaptureQueue:
    """A queue for one producer and one consumer, bounded in bytes and without a lock.

    Args:
        file: for the warning.
        wake: set to wake the consumer.
        warned: takes the warning.
    """

    def __init__(self, file: Path, wake: threading.Event, warned: Warned) -> None:
        self._file, self._wake, self._warned = file, wake, warned
        self._captures: deque[Capture] = deque()
        self._put_bytes, self._taken_bytes = 0, 0  # each is written by one thread only
        self._stalled = False
        self.limit = LIMIT_BYTES

    def __len__(self) -> int:
        return len(self._captures)

    def put(self, capture: Capture) -> bool:
        """Append; False if there is no room. Returns at once unless the queue is full."""
        if self._held() > self.limit and not self._make_room():
            return False
        self._put_bytes += capture.nbytes()
        self._captures.append(capture)
        return True

    def take(self, wait: bool) -> Capture | None:
        """The next capture; None if there is none, or (without `wait`) its values have not arrived."""
        if not self._captures:
            return None
        arriving = self._captures[0].arriving
        if wait:
            arriving.wait()
        elif not arriving.arrived():
            return None
        capture = self._captures.popleft()
        self._taken_bytes += capture.nbytes()
        return capture

    def _held(self) -> int:
        return self._put_bytes - self._taken_bytes

    def _make_room(self) -> bool:
        """Wait for the writing thread, at most `PATIENCE` seconds and once per stall."""
        if not self._stalled:
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                self._wake.set()
                time.sleep(0.005)
                if self._held() <= self.limit // 2:
                    return True
            self._stalled = True
            self._warned.tell(
                "stall",
                f"[GradMonitor] {str(self._file)!r}: steps come faster than they can be written. Steps that "
                "find no room are not recorded. Training continues.",
            )
        if self._held() > self.limit // 2:
            return False
        self._stalled = False
        return True
