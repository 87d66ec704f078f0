"""The page in a real browser: what its script builds. Needs Chromium; run with: pytest -m slow."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from gradkern.diagnosis import notice_of
from gradkern.report import html, write_report
from gradkern.report.payload import payload
from tests.support.synthetic import HOSTILE, make_run, record

pytestmark = pytest.mark.integration

_QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=3000",
]


def dom(page: Path, profile: Path) -> str:
    """The document as the script left it; fails if anything was written to the console."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser, "these tests need Chromium on PATH"
    done = subprocess.run(
        [browser, *_QUIET, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize(("params", "steps"), [(1, 1), (10, 500), (3000, 100_000)])
def test_every_card_is_built(params: int, steps: int, tmp_path: Path) -> None:
    html.write(payload(make_run(params, steps)), tmp_path / "r.html")
    text = dom(tmp_path / "r.html", tmp_path / "profile")
    for title in (
        *("Total norm, before clipping", "Loss", "Layers × steps", "Profile over depth"),
        *("Rows that stand out", "Update ratios", "Magnitudes of elements", "Learning rate"),
    ):
        assert f"<h2>{title}" in text
    assert text.count("<canvas") == 9  # seven charts, the heatmap and its colours
    for absent in ("Diagnosis", "<h2>Events", "Total norm of each group"):
        assert absent not in text.split("<script")[0]


@pytest.mark.parametrize("name", ["{}.weight", "a.very.long.path.that.is.cut.from.the.left.blocks.{}.weight"])
def test_names_of_many_blocks_stand_beside_the_heatmap(name: str, tmp_path: Path) -> None:
    run = make_run(120, 30)
    object.__setattr__(run, "names", tuple(name.format(i) for i in range(120)))
    html.write(payload(run), tmp_path / "r.html")
    dom(tmp_path / "r.html", tmp_path / "profile")  # nothing on the console


def test_a_hostile_name_runs_nothing(tmp_path: Path) -> None:
    run = make_run(4, 30)
    object.__setattr__(run, "names", (HOSTILE, HOSTILE + "2", "]]>", "plain"))
    object.__setattr__(run, "title", HOSTILE)
    html.write(payload(run), tmp_path / "r.html")
    text = dom(tmp_path / "r.html", tmp_path / "profile")
    assert "<img" not in text
    assert "<title>owned" not in text
    assert "&lt;/script&gt;&lt;img src=x" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "No step has been recorded yet."),
        ({"loss": False, "extras": False}, "No loss was recorded."),
        ({"all_nan": True}, "No finite total norm was recorded."),
        ({"extras": False}, "No histograms were recorded."),
        ({"extras": False}, "No update ratios were recorded."),
    ],
    ids=str,
)
def test_what_is_not_there_is_said(options: dict[str, object], said: str, tmp_path: Path) -> None:
    record(tmp_path / "run", **options)
    text = dom(write_report(tmp_path / "run"), tmp_path / "profile")
    assert said in text.split('id="run"')[0]


def test_findings_are_shown_where_there_are_some(tmp_path: Path) -> None:
    run = make_run(4, 30)
    remedy = {"action": "normalise", "because": f"Normalise. {HOSTILE}", "code": "nn.LayerNorm(64)"}
    found = {"kind": "vanishing_gradient", "severity": "severe", "layers": ["a", HOSTILE],
             "first_step": 12, "last_step": 30,
             "evidence": {"decades": 7.25}, "why": "The gradient falls.", "remedies": [remedy]}  # fmt: skip
    also = {**found, "kind": "never_clipping", "severity": "info", "remedies": []}
    object.__setattr__(run, "findings", (found, also))
    html.write(payload(run), tmp_path / "r.html")
    text = dom(tmp_path / "r.html", tmp_path / "profile").split('id="run"')[0]
    assert "Vanishing gradient (severe), since " in text and ">step 12</button>" in text
    assert "decades: 7.25" in text and "<code>nn.LayerNorm(64)</code>" in text
    assert text.index("Vanishing gradient") < text.index("Also seen") < text.index("Never clipping")
    assert "<img" not in text


def test_events_groups_and_own_numbers_are_shown_where_there_are_some(tmp_path: Path) -> None:
    run = make_run(4, 30)
    notices = (notice_of(3, "skip", {"reason": HOSTILE}), notice_of(9, "rollback", {"reason": "nonfinite"}))
    object.__setattr__(run, "events", notices)
    object.__setattr__(run, "happened", {"skip": 70, "rollback": 1})
    object.__setattr__(run, "groups", {"critic": run.series["norm"], HOSTILE: run.series["loss"]})
    object.__setattr__(run, "own", {"accuracy": {"accuracy": run.series["loss"]}, HOSTILE: {}})
    html.write(payload(run), tmp_path / "r.html")
    text = dom(tmp_path / "r.html", tmp_path / "profile").split('id="run"')[0]
    assert (
        "70 skip, 1 rollback" in text
        and ">rolled back</td>" in text
        and "first and the last events of each kind" in text
    )
    assert "Total norm of each group" in text and "critic" in text and "<img" not in text
    assert "<h2>accuracy" in text
