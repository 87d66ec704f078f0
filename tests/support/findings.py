"""What a diagnosis of some evidence finds."""

from __future__ import annotations

from gradkern.diagnosis import diagnose


def kinds(evidence):
    return [finding.kind for finding in diagnose(evidence)]


def alarms(evidence):
    return [finding.kind for finding in diagnose(evidence) if finding.is_alarm]


def only(evidence, kind):
    """The headline, which has to be of a kind."""
    found = diagnose(evidence)
    assert found and found[0].kind == kind, [f.kind for f in found]
    return found[0]
