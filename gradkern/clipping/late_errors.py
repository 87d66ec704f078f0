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


class _Replays:
    """The verdicts on the replays of captured steps, in tensors that the graphs update.

    They are allocated outside of a capture: memory that a capture fills is filled anew in each replay.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = names
        #: 0-d int64: the number of bad replays since the last check.
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        #: int64 [N]: the non-finite elements in the first of them.
        self.nonfinite = torch.zeros(len(names), dtype=torch.int64, device=device)

    def add(self, bad: Tensor, nonfinite: Tensor) -> None:
        self.nonfinite.copy_(torch.where(bad & (self.count == 0), nonfinite, self.nonfinite))
        self.count.add_(bad)

    def take(self) -> tuple[int, _Step]:
        """The number of bad replays and the first of them. The next replay starts anew. Synchronises."""
        count, step = int(self.count), _Step(self.names, self.nonfinite.cpu(), self.count > 0)
        self.count.zero_()
        return count, step


class LateErrors:
    """The verdicts on a clipper's steps that have not been examined yet."""

    def __init__(self) -> None:
        self._steps: deque[_Step] = deque()
        # One for each list of parameters: all graphs that were captured with the same list share it.
        self._replays: list[_Replays] = []

    def add(self, bad: Tensor, nonfinite: Tensor, names: Sequence[str]) -> None:
        """Add the verdict on a step. No synchronisation.

        Args:
            bad: 0-d bool: whether a gradient on any rank has inf or NaN.
            nonfinite: [N]: the number of such elements in each gradient.
            names: the names of the parameters; the same object from step to step while they do not change.

        Raises:
            RuntimeError: a CUDA graph is captured before the first step with these parameters.
        """
        if capturing(bad):
            self._replays_of(names).add(bad, nonfinite)
        elif not bad.is_cuda:
            if bool(bad):
                self._steps.append(_Step(names, nonfinite, bad))
        else:
            if not self._replays or self._replays[-1].names is not names:
                self._replays.append(_Replays(names, bad.device))
            on_host = torch.empty((), dtype=bad.dtype, device="cpu", pin_memory=True)
            on_host.copy_(bad, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(bad.device))
            self._steps.append(_Step(names, nonfinite, on_host, event))

    def _replays_of(self, names: Sequence[str]) -> _Replays:
        if not self._replays or self._replays[-1].names is not names:
            raise RuntimeError(
                "[GradClipper.clip_] on_nonfinite='raise_later': a CUDA graph is being captured before the "
                "first step; run clip_() once outside the graph, which reserves memory for the verdicts"
            )
        return self._replays[-1]

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
        """`raise_known` for all steps and replays since the last call. Synchronises."""
        taken = [replays.take() for replays in self._replays]
        count = sum(own for own, _ in taken)
        if count:
            self._steps.clear()
            raise _error("GradClipper.check", next(step for own, step in taken if own), count)
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


def capturing(tensor: Tensor) -> bool:
    """Whether operations on a tensor are captured in a CUDA graph instead of run."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _error(operation: str, step: _Step, replays: int = 0) -> RuntimeError:
    several = f" It is the first of {replays} such replays." if replays > 1 else ""
    return RuntimeError(
        f"[{operation}] expected finite gradients, but an earlier step had inf or NaN in: "
        f"{bad_parameters(step.nonfinite, step.names)}. Its gradients were left unchanged, and its optimizer "
        f"step was to be skipped (stats.skip_step).{several}"
    )
