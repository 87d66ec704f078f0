"""`diagnose`: apply all rules to a run, with causes before consequences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradkern.diagnosis.case import Case
from gradkern.diagnosis.evidence import RunEvidence
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.load import read_evidence
from gradkern.diagnosis.precedence import in_order
from gradkern.diagnosis.remedies import with_remedies
from gradkern.diagnosis.rules import RULES

if TYPE_CHECKING:
    from gradkern.history import History

__all__ = ["diagnose"]


def diagnose(run: History | RunEvidence) -> list[Finding]:
    """Find faults of a recorded run: vanishing gradients, dead units, steps that are too large, and so on.

    Args:
        run: a `History`, or a `RunEvidence`.

    Returns:
        The findings, the most important first. Alarms come before findings that are only "info", and causes
        before their consequences. Empty if nothing was found.

    Raises:
        HistoryError: the file of the run is damaged.

    Example:
        >>> for finding in gradkern.diagnose(gradkern.History.open("runs/first")):
        ...     print(finding.severity, finding.title, finding.why)

    Notes:
        Needs no torch. Of the data of each parameter only a bounded part is read, so that the time does not
        grow with the length of the run (measured by benchmarks/bench_diagnose.py).
    """
    evidence = run if isinstance(run, RunEvidence) else read_evidence(run)
    case = Case(evidence)
    found = [finding for rule in RULES for finding in rule(case)] if len(evidence.steps) else []
    return with_remedies(case, in_order(found))
