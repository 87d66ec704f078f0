"""Diagnosis of a recorded run: rules that find faults, with evidence and remedies. Needs only NumPy."""

from __future__ import annotations

from gradkern.diagnosis.diagnose import diagnose
from gradkern.diagnosis.events import Notice, notice_of
from gradkern.diagnosis.evidence import RunEvidence
from gradkern.diagnosis.finding import KINDS, SEVERITIES, Finding, Remedy
from gradkern.diagnosis.watchdog import DiagnosisError, Watchdog

__all__ = [
    "KINDS",
    "SEVERITIES",
    "DiagnosisError",
    "Finding",
    "Notice",
    "Remedy",
    "RunEvidence",
    "Watchdog",
    "diagnose",
    "notice_of",
]
