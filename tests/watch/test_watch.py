"""The live view: the content and size of a frame, and the program in a pseudo-terminal."""

from __future__ import annotations

import io
import math
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.cells import cell_len
from rich.console import Console

from gradkern import Finding, GradMonitor, Remedy
from gradkern.history.format import HistoryError
from gradkern.history.layout import Layout
from gradkern.history.rows import EventRow, GroupValues, StepRow
from gradkern.history.writer import HistoryWriter
from gradkern.watch import show_once
from gradkern.watch.chart import bars, fold, levels
from gradkern.watch.snapshot import Snapshot, Watcher
from gradkern.watch.view import Frame
from tests.support.synthetic import HOSTILE

Make = Callable[..., Path]


def frame(folder: Path, width: int = 80, height: int = 24, encoding: str = "utf-8") -> list[str]:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding), width=width, height=height, force_terminal=False)
    console.print(Frame(Watcher(folder).take(), interactive=True))
    console.file.flush()
    return raw.getvalue().decode(encoding).splitlines()


def test_a_frame_tells_of_the_run(recorded: Make) -> None:
    text = "\n".join(frame(recorded(steps=40, bad_step=7), width=120))
    for part in (
        "gradkern run",
        "step 40",
        "before clipping",
        "threshold 2",
        "loss 0.25",
        "lr 0.0025",
        "inf or NaN in 1 step, first at step 7: b.0.weight and 1 more",
        "last 40 of 40 records",
        "largest rms",
        "2 steps/s, 24 values/s recorded, 4 parameters",
        "q quits",
    ):
        assert part in text


def test_rows_are_ranked(recorded: Make) -> None:
    snapshot = Watcher(recorded(steps=40)).take()
    assert [row.name for row in snapshot.largest] == ["b.1.weight", "b.0.weight"]
    assert [row.name for row in snapshot.smallest] == ["a.weight", "a.bias"]
    assert snapshot.largest[0].text == "0.125"
    assert snapshot.risen == []
    assert len(snapshot.fallen) == 4


def test_nonfinite_parameters_come_first(recorded: Make) -> None:
    snapshot = Watcher(recorded(steps=5, bad_step=5)).take()
    assert [(row.name, row.text) for row in snapshot.largest] == [
        ("b.0.weight", "inf or NaN"),
        ("b.1.weight", "inf or NaN"),
    ]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
@pytest.mark.parametrize("height", [5, 10, 16, 24, 60])
def test_a_frame_fits_the_terminal(recorded: Make, width: int, height: int) -> None:
    lines = frame(
        recorded(steps=30, bad_step=7, names=tuple(f"layer.{i}.weight" for i in range(90))), width, height
    )
    assert max(cell_len(line.rstrip()) for line in lines) <= width
    if width >= 40:  # in narrower views, the numbers alone may need more lines
        assert len(lines) <= max(height, 8)


@pytest.mark.parametrize(
    "options",
    [{"steps": 0}, {"steps": 1}, {"all_nan": True}, {"loss": False, "extras": False}, {"names": ("w",)}],
    ids=str,
)
def test_every_kind_of_run_gives_a_frame(recorded: Make, options: dict[str, object]) -> None:
    lines = frame(recorded(**options))
    assert lines[0].startswith("gradkern run")


def test_hostile_names_send_nothing_to_the_terminal(recorded: Make) -> None:
    text = "\n".join(frame(recorded(names=(HOSTILE, "[red]x[/red]", "\x1b]0;t\x07", "d"), bad_step=4)))
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "[red]x[/red]" in text  # no markup either


def test_a_terminal_that_knows_ascii_only(recorded: Make) -> None:
    text = "\n".join(frame(recorded(bad_step=9), encoding="ascii"))
    assert "x" in text
    assert "#" in text


@pytest.mark.parametrize("there", [True, False])
def test_a_run_that_has_not_begun_is_waited_for(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "run"
    if there:
        folder.mkdir()
    watcher = Watcher(folder)
    snapshot = watcher.take()
    assert snapshot.status == "waiting for the run to begin"
    assert f"{'no run' if there else 'no such folder'} yet: {folder}" in snapshot.note
    assert str(folder) in "".join(frame(folder, width=200))
    with pytest.raises(HistoryError, match="no recorded run here: no such"):
        Watcher(folder).take(wait=False)
    folder.mkdir(exist_ok=True)
    (folder / "history.db").touch()  # as a monitor does before it creates its tables
    assert watcher.take().status == "waiting for the run to begin"
    (folder / "history.db").unlink()
    HistoryWriter(folder, {}).close()
    assert watcher.take().status == "waiting for the first step"


def test_a_file_that_was_there_before_is_no_run_being_made(tmp_path: Path) -> None:
    (tmp_path / "history.db").touch()
    with pytest.raises(HistoryError, match="expected a gradkern history"):
        Watcher(tmp_path).take()


def test_what_is_not_a_number_is_said(tmp_path: Path) -> None:
    one, layout = np.ones(1, np.float32), Layout(("w",), np.array([4]), np.array([0]))
    writer = HistoryWriter(tmp_path, {})
    writer.write([StepRow(1, 1e9, layout, one, one, math.nan, loss=math.nan)])
    assert "norm NaN as measured  |  loss NaN" in "\n".join(frame(tmp_path))
    writer.write([StepRow(2, 1e9, layout, one, one, math.inf)])
    assert "norm inf as measured  |  loss NaN" in "\n".join(frame(tmp_path))
    writer.close()


def happening(tmp_path: Path, *events: EventRow) -> Path:
    """A run with two models and some events."""
    one, layout = np.ones(1, np.float32), Layout(("w",), np.array([4]), np.array([0]))
    groups = {"generator": GroupValues(1.5, 1.0, 2.0), "\x1bcritic": GroupValues(math.inf, 1.0, 2.0)}
    writer = HistoryWriter(tmp_path, {})
    writer.write([StepRow(s, 1e9, layout, one, one, 1.0, groups=groups) for s in range(1, 6)])
    writer.write([*events])
    writer.close()
    return tmp_path


def test_what_happened_is_counted_and_the_last_of_it_shown(tmp_path: Path) -> None:
    skip = {"reason": "nonfinite", "parameters": ["w"]}
    finding = Finding("dead_units", "info").to_json()
    run = happening(
        tmp_path,
        EventRow(2, "skip", skip, 1e9),
        EventRow(3, "skip", skip, 1e9),
        EventRow(4, "rollback", {"reason": "nonfinite", "count": 1, "budget": 3}, 1e9),
        EventRow(5, "finding", finding, 1e9),
    )
    text = "\n".join(frame(run, width=120))
    assert "Events: 2 skip, 1 rollback  |  step 4: rolled back: inf or NaN in a gradient (1 of 3)" in text
    assert "dead units" not in text


def test_each_model_of_a_run_has_its_norm(tmp_path: Path) -> None:
    text = "\n".join(frame(happening(tmp_path), width=120))
    assert "Norm of \\x1bcritic inf  |  generator 1.5" in text
    assert "Events" not in text


@pytest.mark.parametrize("height", [5, 10, 14])
def test_events_and_models_leave_room_for_the_numbers(tmp_path: Path, height: int) -> None:
    lines = frame(happening(tmp_path, EventRow(4, "mine", {}, 1e9)), 60, height)
    assert len(lines) <= height and lines[1].startswith("step 5")


def test_a_run_that_was_closed_has_ended(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path / "run")
    model = torch.nn.Linear(2, 1)
    for session in (1, 2):
        monitor = GradMonitor(model, run_dir=tmp_path / "run")
        model(torch.ones(1, 2)).sum().backward()
        monitor.record(step=session)
        monitor.flush()
        assert watcher.take().status == "recording", session
        monitor.close()
        assert watcher.take().status == "ended", session
    with GradMonitor(model, run_dir=tmp_path / "none"):
        pass
    assert Watcher(tmp_path / "none").take().status == "ended"


def test_a_run_that_was_closed_long_ago_is_nothing_to_worry_about(tmp_path: Path) -> None:
    for closed, stalled in ((1e9, False), (None, True)):
        folder = tmp_path / str(closed)
        writer = HistoryWriter(folder, {"closed": closed})
        one, layout = np.ones(1, np.float32), Layout(("w",), np.array([4]), np.array([0]))
        writer.write([StepRow(1, time.time() - 3600, layout, one, one, 1.0)])
        writer.close()
        snapshot = Watcher(folder).take()
        assert snapshot.stalled == stalled
        assert snapshot.status == ("" if stalled else "ended, ") + "last step 60 min ago"


def test_a_killed_run_has_not_ended(
    tmp_path: Path, run_with_torch: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    code = (
        "import os, torch, gradkern\n"
        "model = torch.nn.Linear(2, 1)\n"
        f"monitor = gradkern.GradMonitor(model, run_dir={str(tmp_path / 'run')!r})\n"
        "model(torch.ones(1, 2)).sum().backward()\n"
        "monitor.record()\n"
        "monitor.flush()\n"
        "os.kill(os.getpid(), 9)"
    )
    assert run_with_torch(code).returncode == -9
    assert Watcher(tmp_path / "run").take().status == "recording"


def test_a_watcher_sees_what_is_added(recorded: Make, tmp_path: Path) -> None:
    empty = tmp_path / "run"
    empty.mkdir()
    watcher = Watcher(empty)
    assert watcher.take().records == 0
    recorded(steps=10)
    first = watcher.take()
    assert first.records == 10
    assert watcher.take().same_as(first)


def test_a_watcher_follows_a_run_that_goes_back_and_one_that_is_begun_again(tmp_path: Path) -> None:
    folder, layout = tmp_path / "run", Layout(("w",), np.array([4]), np.array([0]))

    def row(step: int, norm: float = 1.0) -> StepRow:
        values, bad = np.full(1, norm, np.float32), np.array([int(math.isnan(norm))])
        return StepRow(step, time.time(), layout, values, values, norm, nonfinite=bad)

    writer = HistoryWriter(folder, {"closed": None})
    writer.write([row(1), row(2), row(3, math.nan)])
    watcher = Watcher(folder)
    first = watcher.take()
    assert first.first_nonfinite is not None
    assert first.first_nonfinite.step == 3
    writer.write([row(2), row(3)])
    second = watcher.take()
    assert second.first_nonfinite is None
    assert second.nonfinite_steps == 0
    writer.write([row(3, 50.0)])
    third = watcher.take()
    assert third.total_norm == 50.0
    assert not third.same_as(second)
    assert watcher.take().same_as(third)
    writer.close()
    shutil.rmtree(folder)
    assert watcher.take().status == "waiting for the run to begin"
    for _ in range(2):  # deleted, and replaced between two updates
        writer = HistoryWriter(folder, {"closed": None})
        writer.write([row(2), row(3, 50.0)])
        again = watcher.take()
        assert again.records == 2
        assert not again.same_as(third)
        third = again
        writer.close()
        folder.rename(tmp_path / f"old-{again.changes[0]}")
    watcher.close()


def test_a_watcher_of_the_folder_above_those_of_ranks_says_so(tmp_path: Path) -> None:
    for rank in (0, 1, 2, 3, 10):
        HistoryWriter(tmp_path / f"rank{rank}", {}).close()
    snapshot = Watcher(tmp_path).take()
    assert "give one of them as RUN: rank0, rank1, rank2, rank3, … (5 in all)." in snapshot.note
    assert "will be shown" not in snapshot.note


def test_a_watcher_forgets_what_a_branch_replaced(recorded: Make) -> None:
    folder = recorded(steps=8, bad_step=5)
    watcher = Watcher(folder)
    first_nonfinite = watcher.take().first_nonfinite
    assert first_nonfinite is not None and (first_nonfinite.step, str(first_nonfinite)) == (
        5,
        "b.0.weight and 1 more",
    )
    recorded(steps=3)
    after = watcher.take()
    assert (after.step, after.nonfinite_steps, after.first_nonfinite) == (3, 0, None)


def test_bars_are_logarithmic_and_show_what_is_not_finite() -> None:
    assert bars([1.0, 10.0, 100.0, math.nan, 0.0], 1) == ["▁▄█× "] or bars(
        [1.0, 10.0, 100.0, math.nan, 0.0], 1
    ) == ["▁▅█× "]
    assert levels([1.0, 10.0, 100.0], 2) == [1, 8, 16] or levels([1.0, 10.0, 100.0], 2) == [1, 9, 16]
    assert bars([math.nan], 2) == ["×", " "]
    assert bars([5.0, 5.0], 2, ascii_only=True) == ["  ", "##"]


def test_folding_keeps_peaks_and_hides_no_nan() -> None:
    values = np.ones(1000)
    values[500], values[700] = 9.0, np.nan
    folded = fold(values, 10)
    assert folded[5] == 9.0
    assert np.isnan(folded[7])
    assert np.isfinite(np.delete(folded, 7)).all()


def test_one_frame_on_a_console(recorded: Make) -> None:
    console = Console(file=io.StringIO(), width=80)
    show_once(recorded(), console)
    assert "step 40" in console.file.getvalue()


COMMAND = (sys.executable, "-m", "gradkern", "watch")


def _until(terminal: int, text: bytes, seconds: float = 120) -> bytes:
    seen, end = b"", time.monotonic() + seconds
    while text not in seen and time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                seen += os.read(terminal, 65536)
            except OSError:  # the other side is closed
                break
    assert text in seen, seen[-2000:]
    return seen


@pytest.mark.parametrize("way", ["q", "interrupt"])
def test_it_runs_in_a_terminal_and_quits_cleanly(recorded: Make, way: str) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, str(recorded())],
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a suite in the background ignores it
    )
    try:
        _until(ours, b"q quits")
        os.write(ours, b"\x1b[A")  # an arrow key does not quit
        time.sleep(0.6)
        assert process.poll() is None
        if way == "q":
            os.write(ours, b"q")
        else:
            process.send_signal(signal.SIGINT)
        seen = _until(ours, b"\x1b[?1049l")  # the screen from before comes back
        assert process.wait(60) == 0
        assert b"\x1b[?25h" in seen + os.read(ours, 65536)  # and the cursor
        assert process.stderr is not None
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def test_the_monitor_tells_what_it_costs(tmp_path: Path) -> None:
    writer = HistoryWriter(tmp_path, {"monitor": {"record_us": 41.7, "lost": 3}})
    layout = Layout(("w",), np.array([4]), np.array([0]))
    one = np.ones(1, np.float32)
    writer.write([StepRow(1, 1e9, layout, one, one, 1.0, phase="after_clip")])
    writer.close()
    text = "\n".join(frame(tmp_path, width=120))
    assert "1 parameters, record() 42 µs, 3 lost" in text
    assert "norm 1 after clipping" in text
    writer = HistoryWriter(tmp_path, {"monitor": {"record_us": "x" * 50, "lost": [1]}})
    writer.close()
    assert "xx" not in "\n".join(frame(tmp_path, width=120))


def test_the_headline_of_a_diagnosis_is_shown_with_its_remedy() -> None:
    def drawn(finding: Finding | None) -> str:
        out = io.StringIO()
        snapshot = Snapshot("run", "recording", records=3, step=3, total_norm=1.0, headline=finding)
        Console(file=out, width=80, height=24, force_terminal=False).print(Frame(snapshot))
        return out.getvalue()

    remedies = (Remedy("relu", "Use ReLU."),)
    shown = drawn(Finding("vanishing_gradient", "severe", why="It falls.", remedies=remedies))
    assert "vanishing gradient: It falls." in shown and "Do: Use ReLU." in shown
    assert "Do:" not in drawn(None)


def test_a_faulty_run_has_a_headline(recorded: Make) -> None:
    headline = Watcher(recorded(steps=40, bad_step=7)).take().headline
    assert headline is not None and headline.kind == "nonfinite_gradient"
