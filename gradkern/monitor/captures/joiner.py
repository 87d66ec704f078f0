"""`StepJoiner`: brings the parts of a step together, so that the file has one row for each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradkern.history.rows import Row, StepRow
from gradkern.monitor.captures.capture import Capture, Presence
from gradkern.monitor.captures.join import add_parts, join_rows
from gradkern.monitor.captures.joint_layouts import JointLayouts
from gradkern.monitor.captures.step import StepCapture
from gradkern.monitor.captures.transfer import together
from gradkern.monitor.events.decided import PartRow


class JoinedCapture:
    """The captures of one kind of the parts of a step, in the parts' order."""

    def __init__(self, captures: dict[str, Capture], layouts: JointLayouts, norm_type: float) -> None:
        self.captures, self._layouts, self._norm_type = captures, layouts, norm_type
        first = next(iter(captures.values()))
        self.step, self.is_step = first.step, first.is_step
        self.arriving = together([capture.arriving for capture in captures.values()])

    def nbytes(self) -> int:
        return sum(capture.nbytes() for capture in self.captures.values())

    def row(self, presence: Presence) -> Row:
        self.rows = {part: capture.row(presence) for part, capture in self.captures.items()}
        return join_rows(self.rows, self._layouts, self._norm_type)


def parts_of(capture: Capture, row: StepRow) -> list[PartRow]:
    """The rows of the parts of a step, with the policies that decided on them. Call `capture.row` before."""
    if isinstance(capture, StepCapture):
        return [PartRow("", row, capture.stats)]
    if not isinstance(capture, JoinedCapture):
        return []
    return [
        PartRow(part, capture.rows[part], one.stats)  # type: ignore[arg-type]
        for part, one in capture.captures.items()
        if isinstance(one, StepCapture)
    ]


class WholeCapture(StepCapture):
    """A step of all models together."""

    __slots__ = ("parts",)

    def __init__(self, parts: tuple[str, ...], *arguments: Any) -> None:
        super().__init__(*arguments)
        self.parts = parts

    def row(self, presence: Presence) -> StepRow:
        return add_parts(super().row(presence), self.parts, self.stats.norm_type)


class StepJoiner:
    """Holds the captures of the step under way until every part is there, or another step begins.

    Used by the training thread.

    Args:
        parts: their names, in the order in which a row lists them.
        submit: takes the joined captures.
    """

    def __init__(self, parts: tuple[str, ...], submit: Callable[[Capture], None]) -> None:
        self._parts, self._submit = parts, submit
        self._held: dict[type, dict[str, Capture]] = {}
        self._later: list[Capture] = []
        self._layouts = JointLayouts()
        self.norm_type = 2.0

    def add(self, part: str, capture: Capture) -> None:
        """The capture of a part; submitted with the last part of its kind."""
        held = self._held.setdefault(type(capture), {})
        held[part] = capture
        if len(held) == len(self._parts):
            self._release(type(capture))

    def amend(self, capture: Capture) -> None:
        """An amendment; submitted after the row of its step, if that is held."""
        held = self._held.get(StepCapture, {})
        if any(one.step == capture.step for one in held.values()):
            self._later.append(capture)
        else:
            self._submit(capture)

    def release(self) -> None:
        """Submit the rows held for the finished step, its own row first."""
        for kind in sorted(self._held, key=lambda kind: kind is not StepCapture):
            self._release(kind)

    def _release(self, kind: type) -> None:
        held = self._held.pop(kind)
        ordered = {part: held[part] for part in self._parts if part in held}
        self._submit(JoinedCapture(ordered, self._layouts, self.norm_type))
        if kind is StepCapture:
            later, self._later = self._later, []
            for capture in later:
                self._submit(capture)
