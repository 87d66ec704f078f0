"""`DeviceWarning`: a warning that depends on a number on a device, without waiting for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gradkern._util.warning import warn
from gradkern.monitor.captures.transfer import Arriving, PinnedPool, send


class DeviceWarning:
    """Warns after a number has arrived on the host, if it is not 0."""

    def __init__(self) -> None:
        self._arriving: Arriving | None = None
        self._message: Callable[[float], str] = str

    def ask(self, number: Tensor, message: Callable[[float], str]) -> None:
        """Start copying a number to the host.

        Args:
            number: 0-d on any device.
            message: makes the warning from the number.
        """
        self._arriving, self._message = send([number.to(torch.float64)], PinnedPool()), message

    def poll(self) -> bool:
        """Warn if the number has arrived and is not 0. Returns whether it warned."""
        if self._arriving is None or not self._arriving.arrived():
            return False
        number = float(self._arriving.tensors[0])
        self._arriving = None
        if number != 0:
            warn(self._message(number))
        return number != 0
