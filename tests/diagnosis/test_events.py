"""Descriptions of events."""

from __future__ import annotations

import pytest

from gradkern.diagnosis import Finding, Remedy, notice_of


@pytest.mark.parametrize(
    ("kind", "data", "line"),
    [
        ("skip", {"reason": "nonfinite", "parameters": ["a", "b"]},
         "step skipped: inf or NaN in a gradient in a and 1 more"),
        ("skip", {"reason": "outlier", "group": "head"}, "step skipped: head: its norm is an outlier"),
        ("skip", {"reason": "policy", "part": "G", "count": 12, "last_step": 40},
         "step skipped: G: the policy decided to skip it (12 times up to step 40)"),
        ("skip", {"reason": "scaler"}, "step skipped: the loss scale was too large"),
        ("spike", {"norm": 123.456, "limit": 2}, "spike: norm 123.5, limit 2"),
        ("spike", {"norm": None, "limit": 2}, "spike: norm inf or NaN, limit 2"),
        ("threshold", {"before": 1, "after": 0.5}, "threshold changed: 1 to 0.5"),
        ("rollback", {"reason": "loss rose", "count": 2, "budget": 5}, "rolled back: loss rose (2 of 5)"),
        ("stop", {"reason": "budget spent"}, "training stopped: budget spent"),
        ("warning", {"message": "[clip_] too late"}, "warning: [clip_] too late"),
        ("mine", {"note": 1}, 'mine: {"note": 1}'),
        ("mine", {}, "mine"),
    ],
)  # fmt: skip
def test_each_kind_is_one_line(kind, data, line):
    assert notice_of(7, kind, data).line == line


@pytest.mark.parametrize("severity", ["severe", "warning", "info"])
def test_alarms_of_the_diagnosis_are_alerts(severity):
    finding = Finding(
        "dead_units", severity, why="Half are off.", remedies=(Remedy("he_init", "Start again."),)
    )
    notice = notice_of(7, "finding", finding.to_json())
    assert (notice.severity, notice.title) == (severity, "dead units")
    assert notice.text == "Half are off. Start again." and notice.is_alert == (severity != "info")


def test_what_happens_at_many_steps_is_no_alert():
    alerts = {
        kind: notice_of(1, kind, {"norm": 1.0, "limit": 1.0}).is_alert for kind in ("skip", "spike", "mine")
    }
    assert (
        not any(alerts.values())
        and notice_of(1, "stop", {}).is_alert
        and notice_of(1, "rollback", {}).is_alert
    )


@pytest.mark.parametrize(
    "kind", ["finding", "skip", "spike", "threshold", "rollback", "stop", "warning", "\x1b[2J"]
)
@pytest.mark.parametrize(
    "data",
    [
        {},
        {"reason": {}, "parameters": 7},
        {"norm": "x", "limit": []},
        {"before": "\x1b[2J", "after": 1},
        {"kind": 3},
    ],
    ids=str,
)
def test_damaged_data_is_shown_and_controls_nothing(kind, data):
    notice = notice_of(1, kind, data)
    assert notice.line.isprintable() and notice.severity in ("info", "warning", "severe")


def test_a_long_text_is_cut():
    assert len(notice_of(1, "mine", {"text": "x" * 10_000}).line) <= 620
