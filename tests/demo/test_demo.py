"""`gradkern demo` from the command line, and the examples."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest
import torch

from gradkern.cli.main import main
from gradkern.demo.command import _emptied
from gradkern.demo.text import ALPHABET, Batches, encode, standard_library_text
from gradkern.demo.training import SETTINGS, train
from gradkern.history import History

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
STEPS = 30
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=240
    )


@dataclass
class Demo:
    stdout: str
    folder: Path
    runs: list[dict]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo") / "results"
    done = run_python("-m", "gradkern", "demo", "--output", str(folder), "--steps", str(STEPS))
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    return Demo(done.stdout, folder, record["runs"])


def test_the_unclipped_runs_blow_up_and_the_clipped_ones_learn(demo: Demo) -> None:
    assert [run["model"] for run in demo.runs] == ["lstm", "lstm", "transformer", "transformer"]
    for unclipped, clipped in (demo.runs[:2], demo.runs[2:]):
        loss = [float(x) for x in unclipped["loss"]]
        assert math.isnan(loss[-1]) or loss[-1] > 4 * loss[0]
        assert unclipped["verdict"].startswith(("blew up", "diverged"))
        assert len(clipped["loss"]) == STEPS
        assert all(math.isfinite(float(x)) for x in clipped["loss"])
        # The text, and with it the course of so few steps, is another one for each version of Python.
        assert median(clipped["loss"][-10:]) < clipped["loss"][0]
        assert not any(map(any, clipped["nonfinite"]))
        assert clipped["loss"][0] == unclipped["loss"][0]  # same weights, same batch


def test_the_table_says_what_was_recorded(demo: Demo) -> None:
    rows = iter([line.split() for line in demo.stdout.splitlines() if line.startswith("    ")])
    for run in demo.runs:
        for index, layer in enumerate(run["layers"]):
            row = next(row for row in rows if row[0] == layer)
            norms = [float(step[index]) for step in run["layer_norm"]]
            largest = max(norm for norm in norms if math.isfinite(norm))
            assert row[1:4] == [f"{x:.4g}" for x in (norms[0], norms[-1], largest)]
            assert norms[int(row[4]) - 1] == largest
            assert int(row[5]) == sum(step[index] for step in run["nonfinite"])
    for run in (demo.runs[1], demo.runs[3]):
        engaged = sum(coef < 1 for coef in run["clip_coef"])
        assert engaged > 0
        assert f"clipping engaged in {engaged} of {STEPS} steps" in demo.stdout
        assert engaged == sum(norm + 1e-6 > run["max_norm"] for norm in run["total_norm"])


def test_the_first_nonfinite_layer_is_named(demo: Demo) -> None:
    run = demo.runs[2]
    step = next(i for i, counts in enumerate(run["nonfinite"]) if any(counts))
    layer = [name for name, count in zip(run["layers"], run["nonfinite"][step]) if count][-1]
    assert f"first inf or NaN in a gradient: step {step + 1}, layer {layer}" in demo.stdout


def test_the_unclipped_runs_are_diagnosed_and_the_clipped_ones_are_healthy(demo: Demo) -> None:
    said = demo.stdout.split("\nDiagnosis\n")[1]
    for name, unclipped, clipped in (("LSTM", *demo.runs[:2]), ("transformer", *demo.runs[2:])):
        kinds = {finding["kind"] for finding in unclipped["findings"] if finding["severity"] == "severe"}
        assert kinds & {"exploding_gradient", "update_too_large", "nonfinite_gradient"}
        assert f"  {name}, without clipping: " in said and "Do: " in said
        assert all(finding["severity"] == "info" for finding in clipped["findings"])
        assert f"  {name}, max_norm {clipped['max_norm']:g}: healthy" in said
    with History.open(demo.folder / "runs" / "lstm-clipped") as history:
        assert history.total_norm.tolist() == demo.runs[1]["total_norm"] and len(history) == STEPS


def test_both_clips_were_timed(demo: Demo) -> None:
    for name in ("torch.nn.utils.clip_grad_norm_", "gradkern.clip_grad_norm_", "GradClipper.clip_"):
        assert demo.stdout.count(name) == 2
    for run in (demo.runs[1], demo.runs[3]):
        assert len(run["clip_microseconds"]) == 3
        assert all(len(times) == STEPS and min(times) > 0 for times in run["clip_microseconds"].values())


def test_progress_and_where_the_results_are(demo: Demo) -> None:
    assert f"step   {STEPS}/{STEPS}" in demo.stdout
    assert "\r" not in demo.stdout  # not a terminal
    assert f"picture: {demo.folder / 'gradients.png'}" in demo.stdout


def test_the_picture_is_drawn(demo: Demo) -> None:
    image = pytest.importorskip("matplotlib.image", reason="matplotlib is not installed").imread(
        demo.folder / "gradients.png"
    )
    assert image.shape[0] >= 800
    assert image.shape[1] >= 1600
    middle = image.shape[0] // 2
    for half in (image[:middle], image[middle:]):  # a row of panels for each model
        for left in range(4):
            panel = half[:, left * image.shape[1] // 4 : (left + 1) * image.shape[1] // 4, :3]
            ink = (panel < 0.9).any(axis=2).mean()
            assert 0.005 < ink < 0.5


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Models this small wait for each other's threads on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_timing_does_not_disturb_training(tmp_path: Path) -> None:
    data = encode(standard_library_text(20_000))
    plain, timed = (
        train(
            SETTINGS["lstm"],
            data,
            tmp_path / str(timing),
            steps=4,
            max_norm=0.5,
            seed=3,
            time_clipping=timing,
        )
        for timing in (False, True)
    )
    assert plain.loss == timed.loss
    assert plain.layer_norm == timed.layer_norm
    assert plain.clip_coef == timed.clip_coef


def test_a_second_demo_does_not_continue_the_first(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    data = encode(standard_library_text(20_000))
    for _ in range(2):
        run = train(SETTINGS["transformer"], data, _emptied(tmp_path), steps=2, max_norm=0.5, seed=0)
        with History.open(tmp_path) as history:
            assert history.steps.tolist() == [1, 2] and history.loss.tolist() == run.loss
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_text_and_batches() -> None:
    text = standard_library_text(5000)
    assert len(text) == 5000
    data = encode(text)
    assert "".join(ALPHABET[i] for i in data.tolist()) == text
    inputs, targets = Batches(data, 3, 7, seed=1).draw()
    again, _ = Batches(data, 3, 7, seed=1).draw()
    assert torch.equal(inputs, again)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    with pytest.raises(RuntimeError, match=r"expected \d+ characters of Python source in .*, got \d+"):
        standard_library_text(10**10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "argument --steps: expected a whole number of at least 2, got '0'"),
        (["--steps", "many"], "argument --steps: expected a whole number of at least 2, got 'many'"),
        (["--threads", "0"], "argument --threads: expected a whole number of at least 1, got '0'"),
        (["--seed", "-1"], "argument --seed: expected a whole number of at least 0, got '-1'"),
        (["--max-norm", "nan"], "argument --max-norm: expected a finite number above 0, got 'nan'"),
        (["--max-norm", "-1"], "argument --max-norm: expected a finite number above 0, got '-1'"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["demo", *arguments])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_output_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "taken"
    file.write_text("mine")
    assert main(["demo", "--output", str(file)]) == 2
    assert f"--output: expected a folder to write to, got {str(file)!r}" in capsys.readouterr().err
    assert file.read_text() == "mine"


def script(path: Path) -> str:
    """A program that runs the script, with one thread."""
    return (
        f"import runpy, torch\ntorch.set_num_threads(1)\nrunpy.run_path({str(path)!r}, run_name='__main__')"
    )


def test_classic_numbers(run_with_torch: Run) -> None:
    done = run_with_torch(script(ROOT / "examples" / "vanishing_exploding.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9.5367e-07" in done.stdout
    assert "57.66" in done.stdout
    assert done.stdout.count("  yes\n") == 4


STORIES = sorted((ROOT / "examples").glob("diagnose_*.py"))


@pytest.mark.parametrize("story", STORIES, ids=lambda path: path.stem)
def test_a_sick_run_is_diagnosed_and_cured(run_with_torch: Run, story: Path) -> None:
    assert len(STORIES) == 5 and len(story.read_text(encoding="utf-8").splitlines()) < 60
    done = run_with_torch(script(story))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "healthy" and done.stderr == ""


def test_train_loop(run_with_torch: Run) -> None:
    done = run_with_torch(script(ROOT / "examples" / "train_loop.py"))
    assert done.returncode == 0, done.stderr
    losses = [float(line.split()[3]) for line in done.stdout.splitlines() if line.startswith("step")]
    assert len(losses) == 4
    assert losses[-1] < losses[0] / 2
    assert "GradStats(3 rows" in done.stdout
