"""A skip, a spike, a rollback and a changed limit of a run: in its history, its live view and its report."""

from __future__ import annotations

import copy
import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from gradkern import GradClipper, GradkernWarning, GradMonitor, History, RollbackGuard
from gradkern.diagnosis import notice_of
from gradkern.history.noted import Event
from gradkern.policies import AdaGC, AutoClip, SkipOutliers, ZClip
from gradkern.report import write_report
from gradkern.watch import show_once
from tests.support.loops import small_model

STEPS = 40


def train(folder: Path, clipper_of: Any, at: int, factor: float, limit: float | None = None) -> None:
    """A run whose gradient is `factor` times as large at one step, or whose limit changes there."""
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    kept = copy.deepcopy(model.state_dict())
    guard = RollbackGuard(lambda: model.load_state_dict(kept), max_skips=1, every=1)
    clipper = clipper_of(model)
    with GradMonitor(model, optimizer, folder) as monitor:
        for step in range(1, STEPS + 1):
            if step == at and limit is not None:
                clipper.max_norm = limit
            noise = 1 + 0.01 * (step % 5)
            (model(torch.ones(2, 6)).sum() * noise * (factor if step == at else 1.0)).backward()
            stats = clipper.clip_()
            monitor.record(stats)
            if not guard.check(stats, monitor):
                optimizer.step()
            optimizer.zero_grad()


RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "skip": (
        {"clipper_of": lambda m: GradClipper(m, policy=SkipOutliers(window=16)), "at": 30, "factor": 50.0},
        "step skipped",
    ),
    "spike": ({"clipper_of": lambda m: GradClipper(m, policy=ZClip()), "at": 35, "factor": 50.0}, "spike"),
    "spike of AutoClip": (
        {"clipper_of": lambda m: GradClipper(m, policy=AutoClip()), "at": 35, "factor": 50.0},
        "spike",
    ),
    "spike of AdaGC": (
        {"clipper_of": lambda m: GradClipper(m, policy=AdaGC(warmup_steps=5)), "at": 35, "factor": 50.0},
        "spike",
    ),
    "spike that is skipped": (
        {"clipper_of": lambda m: GradClipper(m, policy=SkipOutliers(window=16)), "at": 30, "factor": 50.0},
        "spike",
    ),
    "rollback": (
        {"clipper_of": lambda m: GradClipper(m, 1.0, on_nonfinite="skip"), "at": 20, "factor": math.nan},
        "rolled back",
    ),
    "threshold": (
        {"clipper_of": lambda m: GradClipper(m, 1.0), "at": 20, "factor": 1.0, "limit": 0.5},
        "threshold changed",
    ),
}


@pytest.mark.parametrize("what", RUNS)
def test_what_happens_is_in_the_history_the_view_and_the_report(what: str, tmp_path: Path) -> None:
    run, title = RUNS[what]
    kind = what.partition(" ")[0]
    train(tmp_path, **run)
    with History.open(tmp_path) as history:
        (event,) = [event for event in history.events if event.kind == kind]
    assert event.step == run["at"]
    assert_shown(tmp_path, event, title)


def assert_shown(folder: Path, event: Event, title: str) -> None:
    """Asserts that the live view and the report describe an event."""
    line = notice_of(event.step, event.kind, event.data).line
    assert line.startswith(title)

    console = Console(file=io.StringIO(), width=200, height=40)
    show_once(folder, console)
    shown = console.file.getvalue()
    assert f"1 {event.kind}" in shown.split("Events:")[1].splitlines()[0]

    page = write_report(folder).read_text(encoding="utf-8")
    assert f'"title":"{title}"' in page.replace('": "', '":"')


def test_a_warning_is_an_event_of_the_runs_that_are_open(tmp_path: Path) -> None:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    GradMonitor(model, optimizer, tmp_path / "closed").close()
    with (
        GradMonitor(model, optimizer, tmp_path / "open") as monitor,
        GradMonitor(small_model(), None, tmp_path / "other"),
        pytest.warns(GradkernWarning, match="stepped with these gradients already") as caught,
    ):
        for _ in range(STEPS):
            model(torch.ones(2, 6)).sum().backward()
            optimizer.step()
            monitor.record()
            optimizer.zero_grad()
    (warning,) = caught
    for name, count in (("open", 1), ("other", 1), ("closed", 0)):
        with History.open(tmp_path / name) as history:
            events = [event for event in history.events if event.kind == "warning"]
        assert [event.data for event in events] == [{"message": str(warning.message)}] * count
        if name == "open":
            assert_shown(tmp_path / name, events[0], "warning")


def test_the_warning_of_a_finding_is_no_second_event(tmp_path: Path) -> None:
    model = small_model()
    with (
        pytest.warns(GradkernWarning, match="nonfinite gradient"),
        GradMonitor(model, None, tmp_path, on_finding="warn") as monitor,
    ):
        for _ in range(STEPS):
            (model(torch.ones(2, 6)).sum() * math.nan).backward()
            monitor.record()
            model.zero_grad()
    with History.open(tmp_path) as history:
        assert "finding" in {event.kind for event in history.events}
        assert "warning" not in {event.kind for event in history.events}
