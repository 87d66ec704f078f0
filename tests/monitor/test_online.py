"""Diagnosis while a run is recorded: warnings, an error at the next record, a function, events."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from gradkern import DiagnosisError, GradMonitor, History
from gradkern._util.warning import GradkernWarning


def train(folder, activation, on_finding, steps=60):
    torch.manual_seed(0)
    hidden = [part for _ in range(12) for part in (nn.Linear(16, 16), activation())]
    model = nn.Sequential(*hidden, nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    inputs = torch.randn(128, 16)
    labels = (inputs[:, 0] > 0).long()
    with GradMonitor(model, optimizer, folder, on_finding=on_finding) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), labels)
            loss.backward()
            monitor.record(loss=loss)
            optimizer.step()
            assert monitor.flush()  # the writing thread keeps up


def test_a_faulty_run_is_warned_of_once_and_noted(tmp_path):
    with pytest.warns(GradkernWarning, match="vanishing gradient") as told:
        train(tmp_path, nn.Sigmoid, "warn")
    assert sum("vanishing gradient" in str(w.message) for w in told) == 1
    with History.open(tmp_path) as history:
        found = [event for event in history.events if event.kind == "finding"]
    assert found and found[0].data["kind"] == "vanishing_gradient" and 10 <= found[0].step <= 60


def test_raise_stops_at_the_next_record(tmp_path):
    with pytest.raises(DiagnosisError, match="vanishing gradient") as raised:
        train(tmp_path, nn.Sigmoid, "raise")
    assert raised.value.finding.severity == "severe"
    with History.open(tmp_path) as history:
        assert 10 <= len(history) < 60


def test_a_function_gets_the_findings(tmp_path):
    found = []
    train(tmp_path, nn.Sigmoid, found.append)
    assert found[0].kind == "vanishing_gradient"


def test_nothing_is_said_of_a_run_without_alarm(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradkernWarning)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        inputs = torch.randn(64, 8)
        with GradMonitor(model, optimizer, tmp_path, on_finding="raise") as monitor:
            for _ in range(120):
                optimizer.zero_grad()
                loss = (model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()
                loss.backward()
                monitor.record(loss=loss)
                optimizer.step()


@pytest.mark.parametrize(("value", "error"), [("shout", ValueError), (3, TypeError)])
def test_other_arguments_are_errors(tmp_path, value, error):
    with pytest.raises(error, match=r"\[GradMonitor\] on_finding: expected"):
        GradMonitor(nn.Linear(2, 1), run_dir=tmp_path / "run", on_finding=value)
    assert not (tmp_path / "run").exists()
