"""Does a training loop call `record` before its optimizer's step, or after it?"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from torch import Tensor


class _Gradients:
    """How the gradients were at some time, by the first parameter that had one; keeps none alive."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        grad = next((p.grad for p in params if p.grad is not None), None)
        self.there = grad is not None
        self._grad = None if grad is None else weakref.ref(grad)
        self._version = -1 if grad is None or grad.is_inference() else grad._version

    def same_tensor(self, other: _Gradients) -> bool:
        mine = None if self._grad is None else self._grad()
        return mine is not None and other._grad is not None and mine is other._grad()

    def unchanged_since(self, other: _Gradients) -> bool:
        return self.same_tensor(other) and self._version == other._version


class StepOrder:
    """Finds out whether `record` comes before the optimizer's step or after it.

    The gradients tell: from the earlier of the two to the later they are left alone, clipped or zeroed;
    from the later to the earlier they are made anew. Which was called first tells little: a GradScaler
    may skip the loop's first steps, and something before the loop may step (a distributed checkpoint
    does, to make the optimizer's state).
    """

    def __init__(self) -> None:
        self.records_first: bool | None = None
        self._at_record: _Gradients | None = None
        self._at_step: _Gradients | None = None
        self._recorded = False
        self._stepped_before_record = False
        self._in_loop = False
        """Whether the last step came after a record."""
        self._unclear = 0

    def recorded(self, params: Sequence[Tensor]) -> bool:
        """`record` was called; returns whether that decided it."""
        here, step = _Gradients(params), self._at_step
        if step is not None and (not here.there or here.unchanged_since(step)):
            self.records_first = False
        elif step is not None and self._in_loop and not here.same_tensor(step):
            self.records_first = True
        self._at_record, self._recorded = here, True
        return self.records_first is not None

    def stepping(self, params: Sequence[Tensor]) -> bool:
        """The optimizer is about to step; returns whether that decided it."""
        self._stepped_before_record |= not self._recorded
        self._in_loop = self._recorded
        record, self._at_record = self._at_record, None
        if record is not None:
            if _Gradients(params).unchanged_since(record):
                self.records_first = True
            elif self._unclear:
                self.records_first = self.guess()
            self._unclear += 1
        return self.records_first is not None

    def stepped(self, params: Sequence[Tensor]) -> None:
        """The optimizer has stepped."""
        self._at_step = _Gradients(params)

    def guess(self) -> bool:
        """`records_first` if it cannot be told: one tensor is used again and again, and written to
        between the two as well."""
        return not self._stepped_before_record
