"""`gradkern diagnose`: what it prints, its JSON and its exit status; findings as JSON, text and HTML."""

from __future__ import annotations

import builtins
import json
import re

import numpy as np
import pytest
import torch

import gradkern
from gradkern.cli.main import main
from gradkern.diagnosis import KINDS, Finding, Remedy, diagnose
from gradkern.diagnosis.evidence_words import in_words
from gradkern.diagnosis.show import as_text
from tests.support.runs import changed, flat_loss, healthy, sloped


def record(folder, depth, activation, steps=40):
    torch.manual_seed(0)
    layers = [layer for _ in range(depth) for layer in (torch.nn.Linear(8, 8), activation())]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    inputs = torch.randn(256, 8)
    targets = (inputs[:, 0] > 0).long()
    with gradkern.GradMonitor(model, optimizer, folder) as monitor:
        for _ in range(steps):
            loss = torch.nn.functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            monitor.record(loss=loss)
            optimizer.step()
    return folder


@pytest.fixture(scope="module")
def sick(tmp_path_factory):
    return record(tmp_path_factory.mktemp("sick"), 12, torch.nn.Sigmoid)


@pytest.fixture(scope="module")
def well(tmp_path_factory):
    return record(tmp_path_factory.mktemp("well"), 1, torch.nn.ReLU)


def test_a_sick_run(sick, capsys):
    """Output to a file or a pipe is plain text, with and without rich."""
    assert main(["diagnose", str(sick)]) == 1
    shown = capsys.readouterr().out
    assert "SEVERE: vanishing gradient (steps" in shown and "0.weight" in shown and "1. " in shown
    assert not set(shown) & set("│╭╰\x1b")


@pytest.mark.parametrize("columns", [40, 80])
def test_code_can_be_copied_from_a_terminal(sick, capsys, monkeypatch, columns):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["diagnose", str(sick)]) == 1
    shown = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert "vanishing gradient · severe" in shown and "│" in shown
    for remedy in diagnose(gradkern.History.open(sick))[0].remedies[:3]:
        assert f"\n{remedy.code}\n" in shown


def test_a_healthy_run(well, capsys):
    assert main(["diagnose", str(well)]) == 0
    assert "Healthy" in capsys.readouterr().out


def test_an_empty_run_is_not_called_healthy(tmp_path, capsys):
    gradkern.GradMonitor(torch.nn.Linear(2, 1), run_dir=tmp_path / "run").close()
    assert main(["diagnose", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "there is nothing to judge" in shown and "Healthy" not in shown


def test_a_folder_can_be_given(sick):
    assert gradkern.diagnose(sick)[0].kind == gradkern.diagnose(str(sick))[0].kind == "vanishing_gradient"
    with pytest.raises(
        TypeError, match=r"\[diagnose\] run: expected a History or the folder of a run, got int"
    ):
        gradkern.diagnose(1)


def test_without_rich(sick, capsys, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == "rich":
            raise ImportError("No module named 'rich'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["diagnose", str(sick)]) == 1
    assert "SEVERE: vanishing gradient (steps" in capsys.readouterr().out


def test_json(sick, capsys):
    assert main(["diagnose", str(sick), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["version"], document["healthy"], document["steps"]) == (1, False, 40)
    first = Finding.from_json(document["findings"][0])
    with gradkern.History.open(sick) as history:
        assert first == diagnose(history)[0]
    assert first.kind == "vanishing_gradient"


@pytest.mark.parametrize("content", [None, b"not a database"])
def test_a_run_that_cannot_be_read(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "history.db").write_bytes(content)
    assert main(["diagnose", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("gradkern diagnose: ")


def test_numbers_that_are_not_finite_survive_json():
    finding = Finding(
        "gradient_spike", "warning", ("a",), 1, 2, {"x": float("inf")}, "Why.", (Remedy("clip", "b"),)
    )
    assert Finding.from_json(json.loads(json.dumps(finding.to_json(), allow_nan=False))) == finding


@pytest.mark.parametrize(("field", "value"), [("kind", "flu"), ("severity", "mild")])
def test_unknown_kinds_and_severities(field, value):
    arguments = {"kind": KINDS[0], "severity": "info", field: value}
    with pytest.raises(ValueError, match=rf"\[Finding\] {field}: expected one of .*, got '{value}'"):
        Finding(**arguments)


def test_names_cannot_steer_a_terminal_or_a_page():
    run = sloped(healthy(12), 6)
    names = tuple(f"<b>\x1b[31m{name}" for name in run.names)
    params = dict(zip(names, run.params.values()))
    (finding,) = diagnose(changed(run, names=names, params=params, facts={}))
    page = finding._repr_html_()
    assert "\x1b" not in as_text([finding]) + page and "<b>\\x1b" not in page


def test_alarms_come_with_what_was_also_seen():
    shown = as_text(diagnose(flat_loss(sloped(healthy(12), 6))))
    assert shown.startswith("SEVERE: vanishing gradient") and "Also seen:" in shown
    assert "INFO: loss not decreasing" in shown
    assert "→" not in shown  # a severe finding may explain the others


def test_a_finding_that_is_no_alarm_gives_no_order():
    tight = changed(healthy(), clip_coef=np.ones(200), threshold=np.full(200, 1e6))
    (line,) = [line for line in as_text(diagnose(tight)).splitlines() if "→" in line]
    assert line.strip().startswith("→ Nothing is wrong. For clipping to act, clip the total norm at")


def test_evidence_has_labels():
    words = in_words({"steps_above_0.2": 3, "decades_over_depth": 2.0, "lr": 0.1, "nonfinite_loss": 1.0})
    assert words.split(" · ") == [
        "times a step moved the weights by over 20 %: 3",
        "gradient, last layer / first: 1e+02",
        "learning rate: 0.1",
        "the loss is not finite either",
    ]
    growth = [in_words({"norm_growth_before": value}) for value in (float("nan"), 3.13, 1e4)]
    assert growth == ["", "", "growth of the norm before, by a factor of: 1e+04"]


def test_importing_the_diagnosis_imports_no_torch(run_python):
    done = run_python("import gradkern.diagnosis, sys; print('torch' in sys.modules, 'rich' in sys.modules)")
    assert done.stdout.split() == ["False", "False"], done.stderr
