"""`Watchdog`: a diagnosis while the run is recorded, on the thread that writes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gradkern._util.warning import warn
from gradkern.diagnosis.diagnose import diagnose
from gradkern.diagnosis.finding import SEVERITIES, Finding

if TYPE_CHECKING:
    from gradkern.history import History

__all__ = ["DiagnosisError", "OnFinding", "Watchdog", "as_action"]

#: Steps at which a run is looked at; after the last one each `EVERY`.
FIRST_LOOKS = (10, 20, 50, 100)
EVERY = 100

OnFinding = str | Callable[[Finding], Any]


class DiagnosisError(RuntimeError):
    """Training is to stop: `finding` says why."""

    def __init__(self, finding: Finding) -> None:
        remedy = f" {finding.remedies[0].because}" if finding.remedies else ""
        super().__init__(f"[GradMonitor] {finding.title} ({finding.where}): {finding.why}{remedy}")
        self.finding = finding


def as_action(operation: str, on_finding: OnFinding | None) -> OnFinding | None:
    """The argument, checked.

    Raises:
        TypeError: it is neither a text nor callable.
        ValueError: it is another text than "warn" and "raise".
    """
    if on_finding is None or callable(on_finding):
        return on_finding
    if not isinstance(on_finding, str):
        raise TypeError(
            f'[{operation}] on_finding: expected "warn", "raise" or a function of a Finding, got '
            f"{type(on_finding).__name__}"
        )
    if on_finding not in ("warn", "raise"):
        raise ValueError(f'[{operation}] on_finding: expected "warn" or "raise", got {on_finding!r}')
    return on_finding


class Watchdog:
    """Looks at a growing run now and then, and tells of each finding once.

    Two threads use it: the one that writes the run calls `due` and `look`, the one that trains `check`.

    Args:
        on_finding: "warn" warns of alarms; "raise" has `check` raise at a severe one (and warns of the
            others); a function is called with every finding, in the thread that writes; None does nothing
            but note them.
        note: called with a step, "finding" and the JSON of each finding: an event of the run.
    """

    def __init__(
        self, on_finding: OnFinding | None, note: Callable[[int, str, dict[str, Any]], None]
    ) -> None:
        self._on_finding, self._note = on_finding, note
        self._told: dict[tuple[str, bool], int] = {}
        self._looked_at = 0
        self._fatal: Finding | None = None

    def due(self, rows: int) -> bool:
        """Whether the run is to be looked at, now that it has so many recorded steps."""
        return rows >= next_look(self._looked_at)

    def look(self, history: History) -> list[Finding]:
        """Diagnose the run as it is; returns what had not been told before.

        A finding that became worse is told again.
        """
        self._looked_at = len(history)
        new = [finding for finding in diagnose(history) if self._is_new(finding)]
        for finding in new:
            self._told[finding.kind, bool(finding.layers)] = SEVERITIES.index(finding.severity)
            self._note(finding.last_step, "finding", finding.to_json())
            self._tell(finding)
        return new

    def check(self) -> None:
        """Raise what `look` found to be severe, once.

        Raises:
            DiagnosisError: a severe finding, where on_finding is "raise".
        """
        if self._fatal is not None:
            finding, self._fatal = self._fatal, None
            raise DiagnosisError(finding)

    def _is_new(self, finding: Finding) -> bool:
        known = self._told.get((finding.kind, bool(finding.layers)), -1)
        return SEVERITIES.index(finding.severity) > known

    def _tell(self, finding: Finding) -> None:
        if callable(self._on_finding):
            self._on_finding(finding)
        elif self._on_finding == "raise" and finding.severity == "severe":
            self._fatal = self._fatal or finding
        elif self._on_finding is not None and finding.is_alarm:
            warn(str(DiagnosisError(finding)))


def next_look(rows: int) -> int:
    """The number of recorded steps at which the next look is due, after one at `rows`."""
    for count in FIRST_LOOKS:
        if rows < count:
            return count
    return rows // EVERY * EVERY + EVERY
