"""`StepCounter`: counts optimizer steps, and decides which step a call of `record` belongs to."""

from __future__ import annotations


class StepCounter:
    """Counts optimizer steps from 1.

    With several models a step holds one call of `record` for each of them, its parts; a part that comes
    again begins the next step.
    """

    def __init__(self) -> None:
        self.last = 0
        """Number of the last step that `record` was called for."""
        self._open: set[str] | None = None
        """The parts that the last step has; None if it takes no more."""

    def upcoming(self, part: str) -> int:
        """The number that the next call for a part gets; "" is a call for everything."""
        continues = self._open is not None and part and part not in self._open
        return self.last if continues else self.last + 1

    def begin(self, number: int, part: str) -> bool:
        """`record` is called; returns whether this begins a step."""
        if self._open is not None and number == self.last and part and part not in self._open:
            self._open.add(part)
            return False
        self.last, self._open = number, {part} if part else None
        return True

    def resume(self, last: int) -> None:
        """Continue after a step, which may be an earlier one."""
        self.last, self._open = last, None
