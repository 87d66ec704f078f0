"""Errors of on_nonfinite="raise_later", raised after the device has completed the step."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradkern.clipping.verdict import bad_parameters


@dataclass(frozen=True)
class _Step:
    names: Sequence[str]
    nonfinite: Tensor
    bad: Tensor
    """0-d bool: on the host, valid after `event` has completed; on the device for a captured step."""
    event: Any = None


class LateErrors:
    """The verdicts on a clipper's steps that have not been examined yet."""

    def __init__(self) -> None:
        self._steps: deque[_Step] = deque()
        self._captured: _Step | None = None

    def add(self, bad: Tensor, nonfinite: Tensor, names: Sequence[str]) -> None:
        """Add the verdict on a step. No synchronisation.

        Args:
            bad: 0-d bool: whether a gradient on any rank has inf or NaN.
            nonfinite: [N]: the number of such elements in each gradient.
            names: the names of the parameters.
        """
        if not bad.is_cuda:
            if bool(bad):
                self._steps.append(_Step(names, nonfinite, bad))
        elif torch.cuda.is_current_stream_capturing():
            self._captured = _Step(names, nonfinite, bad)
        else:
            on_host = torch.empty((), dtype=bad.dtype, device="cpu", pin_memory=True)
            on_host.copy_(bad, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(bad.device))
            self._steps.append(_Step(names, nonfinite, on_host, event))

    def raise_known(self) -> None:
        """Examine the steps that are known to be completed.

        Raises:
            RuntimeError: one of them had inf or NaN.

        Notes:
            With several ranks it waits for the latest step, so that all ranks raise in the same call. The
            device stays busy meanwhile, because the next backward pass is queued.
        """
        if not self._steps or (self._steps[0].event and torch.cuda.is_current_stream_capturing()):
            return
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._look(wait=several, operation="GradClipper.clip_")

    def raise_all(self) -> None:
        """`raise_known` for all steps so far and the latest replay of a captured step. Synchronises."""
        captured = self._captured
        if captured is not None and bool(captured.bad):
            raise _error("GradClipper.check", captured)
        self._look(wait=True, operation="GradClipper.check")

    def _look(self, wait: bool, operation: str) -> None:
        while self._steps:
            step = self._steps[0]
            if step.event is not None and not wait and not step.event.query():
                return
            if step.event is not None:
                step.event.synchronize()
            self._steps.popleft()
            if bool(step.bad):
                self._steps.clear()
                raise _error(operation, step)

    def __reduce__(self) -> Any:
        return LateErrors, ()  # a copied clipper starts without steps


def _error(operation: str, step: _Step) -> RuntimeError:
    return RuntimeError(
        f"[{operation}] expected finite gradients, but an earlier step had inf or NaN in: "
        f"{bad_parameters(step.nonfinite, step.names)}. Its gradients were left unchanged, and its optimizer "
        "step was to be skipped (stats.skip_step)."
    )
