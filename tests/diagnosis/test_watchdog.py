"""Diagnosis of a run while it is recorded: when it is made, what it reports, and what it raises."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from gradkern import GradkernWarning
from gradkern.diagnosis import Watchdog
from gradkern.diagnosis import watchdog as module
from gradkern.diagnosis.watchdog import as_action, next_diagnosis
from tests.support.runs import changed, flat_loss, healthy, sloped


class Growing:
    """A stand-in for a history, with a number of rows and evidence."""

    def __init__(self, evidence):
        self.evidence = evidence

    def __len__(self):
        return len(self.evidence.steps)


@pytest.fixture(autouse=True)
def without_a_file(monkeypatch):
    whole = module.diagnose
    monkeypatch.setattr(module, "diagnose", lambda history: whole(history.evidence))


SICK = Growing(sloped(healthy(12), 6))
SWINGING = Growing(
    changed(
        flat_loss(healthy()),
        loss=2.3 + np.where(np.arange(200) % 2, 1.0, -1.0) * np.minimum(np.arange(200) / 10, 1),
        update_ratio=np.full((10, 12), 0.05, dtype=np.float32),
    )
)


def test_looks_are_rarer_as_the_run_grows():
    looks, at = [], 0
    while len(looks) < 7:
        at = next_diagnosis(at)
        looks.append(at)
    assert looks == [10, 20, 50, 100, 200, 300, 400]
    assert next_diagnosis(4321) == 4400


def test_each_finding_is_an_event_once():
    events = []
    dog = Watchdog(None, lambda *event: events.append(event))
    assert dog.due(10) and not dog.due(9)
    assert [f.kind for f in dog.diagnose(SICK)] == ["vanishing_gradient"]
    assert dog.diagnose(SICK) == []
    (step, kind, data) = events[0]
    assert (step, kind, data["kind"], len(events)) == (200, "finding", "vanishing_gradient", 1)
    assert not dog.due(200) and dog.due(300)


def test_warn():
    dog = Watchdog("warn", lambda *_: None)
    with pytest.warns(GradkernWarning, match="vanishing gradient .* Over 12 layers"):
        dog.diagnose(SICK)
    assert dog.take_severe() is None


def test_raise_keeps_severe_findings_and_warns_of_the_others():
    dog = Watchdog("raise", lambda *_: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dog.diagnose(SICK)
    assert dog.take_severe().kind == "vanishing_gradient"
    assert dog.take_severe() is None  # once
    with pytest.warns(GradkernWarning, match="loss oscillating"):
        dog.diagnose(SWINGING)
    assert dog.take_severe() is None


def test_severe_findings_may_be_warned_of_as_well():
    dog = Watchdog("raise", lambda *_: None, warns_of_severe=True)
    with pytest.warns(GradkernWarning, match="vanishing gradient .* Over 12 layers"):
        dog.diagnose(SICK)
    assert dog.take_severe().kind == "vanishing_gradient"


def test_a_function_gets_every_finding():
    found = []
    Watchdog(found.append, lambda *_: None).diagnose(Growing(flat_loss(healthy())))
    assert [f.kind for f in found] == ["loss_not_decreasing"]


def test_arguments():
    assert as_action("GradMonitor", None) is None and as_action("GradMonitor", "warn") == "warn"
    with pytest.raises(
        ValueError,
        match=r'\[GradMonitor\] on_finding: expected "warn", "raise" or a function, got "?.shout',
    ):
        as_action("GradMonitor", "shout")
    with pytest.raises(TypeError, match=r"on_finding: .* got int"):
        as_action("GradMonitor", 3)
