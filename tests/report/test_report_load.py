"""From a recorded run to what a report shows, against the recorded values themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gradkern.history.facade import History
from gradkern.history.format import HistoryError
from gradkern.history.layout import Layout
from gradkern.history.rows import EventRow, GroupValues, StepRow
from gradkern.history.writer import HistoryWriter
from gradkern.report import html, write_report
from gradkern.report.load import load
from gradkern.report.payload import payload
from tests.support.synthetic import HOSTILE, norms_at

Make = Callable[..., Path]


def test_a_short_run_is_shown_step_by_step(recorded: Make) -> None:
    run = load(recorded(steps=40))
    expected = np.stack([norms_at(step, 4) / 4 for step in range(1, 41)], axis=1)
    np.testing.assert_allclose(run.matrices["rms"].values, expected, rtol=1e-6)
    assert run.matrices["rms"].first.tolist() == list(range(1, 41))
    assert run.records == 40
    np.testing.assert_allclose(run.series["loss"], 10.0 / np.arange(1, 41))
    assert run.max_norm == pytest.approx(2.0)
    assert run.phase == "before clipping"


def test_a_long_run_is_averaged(recorded: Make) -> None:
    folder = recorded(steps=3000, extras=False)
    run = load(folder)
    matrix = run.matrices["rms"]
    assert 250 <= len(matrix.first) <= 1000
    with History.open(folder) as history:
        rms = history.rms.astype(np.float64)
    for column in (0, len(matrix.first) // 2, len(matrix.first) - 1):
        part = rms[matrix.first[column] - 1 : matrix.last[column]]
        np.testing.assert_allclose(matrix.values[:, column], part.mean(axis=0), rtol=1e-5)


def test_totals_of_the_run(recorded: Make) -> None:
    summary = load(recorded(steps=40, bad_step=7)).summary
    totals = [float(np.linalg.norm(norms_at(s, 4).astype(np.float64))) for s in range(1, 41)]
    clipped = [s == 7 or 2.0 / (total + 1e-6) < 1 for s, total in enumerate(totals, start=1)]
    assert summary["clip_rate"] == pytest.approx(np.mean(clipped))
    assert summary["total_norm"] == pytest.approx(totals[-1])
    assert summary["nonfinite_steps"] == 1
    assert summary["first_nonfinite"] == {"step": 7, "text": "b.0.weight and 1 more"}
    assert summary["seconds"] == pytest.approx(19.5)


def test_non_finite_steps_are_marked_where_they_were(recorded: Make) -> None:
    matrix = load(recorded(steps=40, bad_step=7)).matrices["rms"]
    assert np.argwhere(matrix.bad).tolist() == [[2, 6], [3, 6]]


def test_update_ratios_and_histograms(recorded: Make) -> None:
    run = load(recorded(steps=40))
    assert run.matrices["ratio"].first.tolist() == [10, 20, 30, 40]
    np.testing.assert_allclose(run.matrices["ratio"].values[:, 1], norms_at(20, 4) * 1e-3, rtol=1e-6)
    bands = run.ratio_bands()
    assert bands is not None
    np.testing.assert_allclose(bands["mid"][0], np.median(norms_at(10, 4)) * 1e-3, rtol=1e-6)
    assert run.histogram is not None
    shares = dict(zip(range(run.histogram.low, 99), run.histogram.shares[0]))
    assert {e: s for e, s in shares.items() if s} == {-9: 0.75, -8: 0.25}
    assert run.histogram.underflow["fp16"].tolist() == [0.25] * 4
    assert run.ratio_note == "Computed from all elements."


@pytest.mark.parametrize(("superseded", "steps"), [(False, [10, 20]), (True, [10, 20, 30, 40, 10, 20])])
def test_what_a_branch_replaced_is_shown_where_the_history_shows_it(
    recorded: Make, superseded: bool, steps: list[int]
) -> None:
    recorded(steps=40)
    with History.open(recorded(steps=20), superseded=superseded) as history:
        run = load(history)
        assert history.update_steps.tolist() == history.histogram_steps.tolist() == steps
    assert run.histogram is not None
    assert run.matrices["ratio"].first.tolist() == run.histogram.steps.tolist() == steps


def test_a_parameter_under_two_names_weighs_once(recorded: Make) -> None:
    assert load(recorded(first=(0, 1, 0, 3))).numel.tolist() == [16, 16, 0, 16]


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"steps": 1},
        {"loss": False, "extras": False},
        {"all_nan": True},
        {"names": (HOSTILE,), "steps": 3},
        {"names": ("weight",)},
    ],
    ids=["no step", "one step", "no loss", "all NaN", "hostile", "root"],
)
def test_every_kind_of_run_gives_a_page(recorded: Make, options: dict[str, object]) -> None:
    folder = recorded(**options)
    path = write_report(folder)
    assert path == folder / "report.html"
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert page.count("</script>") == 2
    assert HOSTILE not in page


def test_an_open_history_is_as_good_as_a_folder(recorded: Make) -> None:
    folder = recorded()
    with History.open(folder) as history:
        assert html.render(payload(load(history))) == html.render(payload(load(folder)))


def test_what_happened_and_the_norms_of_groups(tmp_path: Path) -> None:
    layout, one = Layout(("w",), np.array([4]), np.array([0])), np.ones(1, np.float32)
    writer = HistoryWriter(tmp_path, {})
    groups = [{f"g{i}": GroupValues(float(s + i), 1.0, 2.0) for i in range(10)} for s in range(100)]
    writer.write([StepRow(s + 1, 1e9, layout, one, one, 1.0, groups=groups[s]) for s in range(100)])
    writer.write([EventRow(s, "spike", {"norm": 3.0, "limit": 2.0}, 1e9) for s in range(1, 91)])
    writer.write(
        [EventRow(50, "rollback", {}, 1e9), EventRow(7, "finding", {}, 1e9), EventRow(999, "spike", {}, 1e9)]
    )
    writer.close()
    run = load(tmp_path)
    assert run.happened == {"spike": 91, "rollback": 1}
    shown = [notice.step for notice in run.events if notice.kind == "spike"]
    assert shown == [*range(1, 21), *range(72, 91), 999] and len(run.events) == 41
    assert run.series["spikes"].tolist() == [1.0] * 90 + [0.0] * 10
    assert list(run.groups) == [f"g{i}" for i in range(2, 10)]
    np.testing.assert_array_equal(run.groups["g9"], np.arange(100) + 9.0)


def test_own_numbers_and_norms_over_time(tmp_path: Path) -> None:
    """Each number has a chart; five positions of a sequence share one."""
    layout, one = Layout(("w",), np.array([4]), np.array([0])), np.ones(1, np.float32)
    writer = HistoryWriter(tmp_path, {})
    over_time = {f"gradient_over_time/core/{i}": 10.0**-i for i in range(41)}
    for s in range(20):
        extra = over_time | {"accuracy": s / 20} | {f"own{i}": 1.0 for i in range(20)}
        writer.write([StepRow(s + 1, 1e9, layout, one, one, 1.0, extra=extra)])
    writer.close()
    run = load(tmp_path)
    assert len(run.own) == 12
    assert list(run.own["gradient_over_time/core"]) == ["0", "10", "20", "30", "40"]
    np.testing.assert_array_equal(run.own["accuracy"]["accuracy"], np.arange(20) / 20)
    charts = {chart["title"]: chart["curves"] for chart in payload(run)["own"]}
    assert list(charts) == list(run.own) and charts["accuracy"]["accuracy"][1] == 0.05


def test_no_run_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match="no recorded run here: no such"):
        load(tmp_path / "nothing")


def test_history_in_a_notebook(recorded: Make) -> None:
    with History.open(recorded(names=("a", HOSTILE), bad_step=3)) as history:
        text = history._repr_html_()
    assert "<img" not in text
    assert "1 to 40" in text
    assert "first, at step 3" in text
    with History.open(recorded(name="empty", steps=0)) as history:
        assert "nothing recorded yet" in history._repr_html_()
