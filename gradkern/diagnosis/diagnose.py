"""`diagnose`: every rule over the evidence, causes before consequences."""

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
    """What ails a run.

    Args:
        run: a History, or the evidence itself.

    Returns:
        The findings: the first is the headline, the others are also seen. Alarms come before those that
        are only "info"; causes come before their consequences. Empty for a run with nothing to say.

    Notes:
        Of what is recorded for each parameter, a bounded part is read, whatever the length of the run
        (benchmarks/bench_diagnose.py measures it). Needs no torch.
    """
    evidence = run if isinstance(run, RunEvidence) else read_evidence(run)
    case = Case(evidence)
    found = [finding for rule in RULES for finding in rule(case)] if len(evidence.steps) else []
    return with_remedies(case, in_order(found))
