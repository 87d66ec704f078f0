"""The diagnosis of a run while it is recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gradkern.diagnosis.watchdog import OnFinding, Watchdog
from gradkern.history import History
from gradkern.history.rows import Row, StepRow
from gradkern.monitor.ranks import over_several_ranks


class OnlineDiagnosis:
    """Diagnoses a run from time to time, in the thread that writes it.

    `take_severe` is for the training thread.

    Args:
        folder: folder of the run.
        recorded: how many steps it has already.
        note: called with a step, "finding" and the JSON of each finding.
    """

    def __init__(
        self,
        on_finding: OnFinding,
        folder: Path,
        recorded: int,
        note: Callable[[int, str, dict[str, Any]], None],
    ) -> None:
        self._watchdog = Watchdog(on_finding, note, warns_of_severe=over_several_ranks())
        self._folder, self._recorded = folder, recorded
        self.take_severe = self._watchdog.take_severe

    def committed(self, rows: Sequence[Row]) -> None:
        """Rows were committed: diagnose the run if a diagnosis is due."""
        self._recorded += sum(isinstance(row, StepRow) for row in rows)
        if self._watchdog.due(self._recorded):
            with History.open(self._folder) as history:
                self._watchdog.diagnose(history)
