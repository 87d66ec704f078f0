"""`Watchdog`: the diagnosis of a run while it is recorded, in the writing thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gradkern._util.warning import warn
from gradkern.diagnosis.diagnose import diagnose
from gradkern.diagnosis.finding import SEVERITIES, Finding

if TYPE_CHECKING:
    from gradkern.history import History

__all__ = ["DiagnosisError", "OnFinding", "Watchdog", "as_action"]

#: Numbers of recorded steps after which a run is diagnosed; after the last one, every `EVERY` steps.
FIRST_DIAGNOSES = (10, 20, 50, 100)
EVERY = 100

OnFinding = str | Callable[[Finding], Any]


class DiagnosisError(RuntimeError):
    """Training should stop because of a severe finding; see `GradMonitor(on_finding="raise")`.

    Attributes:
        finding: the `Finding`.
    """

    def __init__(self, finding: Finding) -> None:
        remedy = f" {finding.remedies[0].because}" if finding.remedies else ""
        super().__init__(f"[GradMonitor] {finding.title} ({finding.where}): {finding.why}{remedy}")
        self.finding = finding


def as_action(operation: str, on_finding: OnFinding | None) -> OnFinding | None:
    """Check the argument `on_finding`.

    Raises:
        TypeError: it is neither a string nor callable.
        ValueError: it is a string other than "warn" and "raise".
    """
    if on_finding is None or callable(on_finding):
        return on_finding
    if not isinstance(on_finding, str):
        raise TypeError(
            f'[{operation}] on_finding: expected "warn", "raise" or a function of a Finding, got '
            f"{type(on_finding).__name__}"
        )
    if on_finding not in ("warn", "raise"):
        raise ValueError(
            f'[{operation}] on_finding: expected "warn", "raise" or a function, got {on_finding!r}'
        )
    return on_finding


class Watchdog:
    """Diagnoses a growing run from time to time and reports each finding once.

    The writing thread calls `due` and `diagnose`, the training thread calls `take_severe`.

    Args:
        on_finding: "warn" warns of alarms. "raise" keeps a severe one for `take_severe` and warns of the
            others. A function is called with every finding, in the writing thread. None only notes them.
        note: called with a step, "finding" and the JSON of each finding, to record an event.
        warns_of_severe: with "raise", warn of severe findings, too, because it may be long until one is
            raised.
    """

    def __init__(
        self,
        on_finding: OnFinding | None,
        note: Callable[[int, str, dict[str, Any]], None],
        *,
        warns_of_severe: bool = False,
    ) -> None:
        self._on_finding, self._note, self._warns_of_severe = on_finding, note, warns_of_severe
        self._told: dict[tuple[str, bool], int] = {}
        self._diagnosed_at = 0
        self._severe: Finding | None = None

    def due(self, rows: int) -> bool:
        """Whether the run should be diagnosed, given the number of recorded steps."""
        return rows >= next_diagnosis(self._diagnosed_at)

    def diagnose(self, history: History) -> list[Finding]:
        """Diagnose the run as it is now. Returns the findings that are new or have become worse."""
        self._diagnosed_at = len(history)
        new = [finding for finding in diagnose(history) if self._is_new(finding)]
        for finding in new:
            self._told[finding.kind, bool(finding.layers)] = SEVERITIES.index(finding.severity)
            self._note(finding.last_step, "finding", finding.to_json())
            self._tell(finding)
        return new

    def take_severe(self) -> Finding | None:
        """The severe finding that training should stop for, once; None if there is none, or on_finding is not
        "raise"."""
        finding, self._severe = self._severe, None
        return finding

    def _is_new(self, finding: Finding) -> bool:
        known = self._told.get((finding.kind, bool(finding.layers)), -1)
        return SEVERITIES.index(finding.severity) > known

    def _tell(self, finding: Finding) -> None:
        if callable(self._on_finding):
            self._on_finding(finding)
            return
        raises = self._on_finding == "raise" and finding.severity == "severe"
        if raises:
            self._severe = self._severe or finding
        if self._on_finding is not None and finding.is_alarm and (self._warns_of_severe or not raises):
            warn(str(DiagnosisError(finding)), told=False)  # it is an event already


def next_diagnosis(rows: int) -> int:
    """The number of recorded steps at which the next diagnosis is due, after one at `rows`."""
    for count in FIRST_DIAGNOSES:
        if rows < count:
            return count
    return rows // EVERY * EVERY + EVERY
