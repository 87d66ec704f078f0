"""`diagnose`: apply all rules to a run, with causes before consequences."""

from __future__ import annotations

import os

import numpy as np

from gradkern.diagnosis.case import Case
from gradkern.diagnosis.evidence import RunEvidence
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.load import read_evidence
from gradkern.diagnosis.precedence import in_order
from gradkern.diagnosis.remedies import with_remedies
from gradkern.diagnosis.rules import RULES
from gradkern.diagnosis.severity import eased
from gradkern.history.facade import History

__all__ = ["diagnose"]


def diagnose(run: History | RunEvidence | str | os.PathLike[str]) -> list[Finding]:
    """Find faults of a recorded run: vanishing gradients, dead units, steps that are too large, and so on.

    Args:
        run: a `History`, a `RunEvidence`, or the folder of a run.

    Returns:
        The findings, the most important first. Alarms come before findings that are only "info", and causes
        before their consequences. Empty if nothing was found.

    Raises:
        HistoryError: the folder holds no run, or its file is damaged.
        TypeError: `run` is something else.

    Examples:
        >>> for finding in gradkern.diagnose("runs/first"):
        ...     print(finding.severity, finding.title, finding.why)

    Notes:
        Needs no torch. Of the data of each parameter only a bounded part is read, so that the time does not
        grow with the length of the run (measured by benchmarks/bench_diagnose.py).
    """
    if isinstance(run, (str, os.PathLike)):
        with History.open(run) as history:
            return diagnose(history)
    if not isinstance(run, (History, RunEvidence)):
        raise TypeError(
            f"[diagnose] run: expected a History or the folder of a run, got {type(run).__name__}"
        )
    evidence = run if isinstance(run, RunEvidence) else read_evidence(run)
    case = Case(evidence)
    # What a rule makes of inf, NaN and 0 / 0 is not finite either, and meets no threshold.
    with np.errstate(all="ignore"):
        found = [finding for rule in RULES for finding in rule(case)] if len(evidence.steps) else []
        return with_remedies(case, in_order(eased(case, found)))
