"""The flow of scripts/gpu_check.sh, with stand-ins for the tools of a machine with a GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_check.sh"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a bash script")


def bars(*missed, status=0):
    """A stand-in for python, for which cuda_bars.py names bars as missed, and ends with a status."""
    names = json.dumps(missed)
    lines = "".join(f"echo 'MISSED {name}'; " for name in missed)
    file = 'eval "file=\\${$#}"; '  # the last argument
    return f"""echo "$*"
case "$*" in *cuda_bars.py*) {file} echo '{names}' > "$file"; {lines} exit {status};; esac"""


@pytest.fixture
def check(tmp_path):
    """Runs the script; `tools` maps a program to the shell text it runs."""

    def run(*steps, limit=570, **tools):
        programs = {
            "nvidia-smi": 'case "$*" in *compute_cap*) echo 9.0;; esac',
            # The requested program prints its name.
            "nvcc": 'while [ "$1" != -o ]; do shift; done\n'
            'printf "#!/bin/sh\\necho $2\\n" > "$2"; chmod +x "$2"',
            "compute-sanitizer": "exit 0",
            "python": bars(),
            **{name.replace("_", "-"): text for name, text in tools.items()},
        }
        for name, text in programs.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
            (tmp_path / name).chmod(0o755)
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "PYTHON": str(tmp_path / "python"),
            "OUT": str(tmp_path / "out"),
            "LIMIT": str(limit),
        }
        done = subprocess.run(
            ["bash", str(SCRIPT), *steps], env=environment, capture_output=True, text=True, timeout=60
        )
        summary = tmp_path / "out" / "summary.json"
        rows = json.loads(summary.read_text())["steps"] if summary.exists() else []
        return done, {row["step"]: row["status"] for row in rows}, tmp_path / "out"

    return run


def logs_of(out):
    """What each step printed."""
    parts = (out / "log.txt").read_text().split("\n== ")
    return {name: text for name, _, text in (part.partition("\n") for part in parts[1:])}


def test_all_steps(check):
    done, statuses, out = check()
    order = ["build", "tests"]
    order += [f"sanitize-{tool}" for tool in ("memcheck", "racecheck", "initcheck", "synccheck")]
    order += ["bench", "bench-bars", "bench-predictions", "bench-accumulation"]
    assert done.returncode == 0, done.stderr
    assert list(statuses.items()) == [(name, 0) for name in order]
    logs = logs_of(out)
    assert list(logs) == order
    assert "setup.py build_ext --inplace" in logs["build"]
    assert "-m pytest -q -m cuda and not slow tests/cuda" in logs["tests"]
    assert f"--output {out}/bench_cuda.json" in logs["bench"]
    assert [line.rpartition("/")[2] for line in logs["bench-accumulation"].split()] == [
        "accumulation_0",
        "accumulation_1",
    ]
    assert {file.name for file in out.iterdir()} == {"log.txt", "nvidia-smi.txt", "summary.json"}
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["failed"], summary["limit"], summary["missed_bars"]) == (0, 570, [])


def test_nothing_runs_without_a_build(check):
    done, statuses, _ = check(python='case "$*" in *setup.py*) exit 3;; esac')
    assert done.returncode == 1
    assert statuses == {"build": 3}
    assert "the build failed" in done.stderr


def test_a_failing_step_is_told_and_the_next_runs(check):
    done, statuses, _ = check(compute_sanitizer='case "$*" in *memcheck*) exit 9;; esac')
    assert done.returncode == 1
    assert statuses["sanitize-memcheck"] == 9
    assert statuses["sanitize-racecheck"] == 0
    assert statuses["bench"] == 0


@pytest.mark.parametrize(("memcheck", "failed", "code"), [(0, 0, 3), (9, 1, 1)])
def test_missed_bars_are_named_and_are_no_failure_of_a_step(check, memcheck, failed, code):
    names = ["norm pass: 1 KiB: 9.0 µs, at most 7.0 µs", "launches: 1 KiB: 3 launches, at most 2"]
    tool = f'case "$*" in *memcheck*) exit {memcheck};; esac'
    done, statuses, out = check(python=bars(*names, status=3), compute_sanitizer=tool)
    assert done.returncode == code
    assert statuses["bench-bars"] == 3 and statuses["bench-accumulation"] == 0
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["failed"], summary["missed_bars"]) == (failed, names)
    assert all(f"MISSED {name}" in done.stdout for name in names)


def test_bars_that_cannot_be_judged_are_a_failure(check):
    done, statuses, out = check("bench", python='case "$*" in *cuda_bars.py*) exit 1;; esac')
    assert done.returncode == 1 and statuses["bench-bars"] == 1
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["failed"], summary["missed_bars"]) == (1, None)


def test_results_of_an_earlier_run_are_not_judged(check, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "bench_cuda.json").write_text("{}")
    check("bench")
    assert not (tmp_path / "out" / "bench_cuda.json").exists()


def test_no_step_runs_past_the_limit(check):
    done, statuses, out = check("tests", "bench", limit=2, python='case "$*" in *pytest*) sleep 30;; esac')
    assert done.returncode == 1
    assert statuses == {
        "build": 0,
        "tests": 124,
        "bench": 124,
        "bench-bars": 124,
        "bench-predictions": 124,
        "bench-accumulation": 124,
    }
    assert logs_of(out)["bench"] == "not run: the 2 s in all are over\n"


def test_the_shares_fit_the_limit():
    (text,) = re.findall(r"declare -A share=\((.*?)\)", SCRIPT.read_text(), re.S)
    shares = {name: int(seconds) for name, seconds in re.findall(r"\[([a-z-]+)\]=(\d+)", text)}
    assert next(iter(shares)) == "build" and len(shares) == 10
    assert sum(shares.values()) < 570


def test_a_step_leaves_the_later_ones_their_shares(check):
    """`timeout` prints its limit instead of running: 570 minus the shares of the later steps."""
    _, _, out = check("tests", "bench", timeout='echo "limit $1"')
    limits = [int(logs_of(out)[name].split()[1]) for name in ("build", "tests", "bench")]
    # A second may pass between two steps.
    for limit, most in zip(limits, (570 - 90 - 150 - 20, 570 - 150 - 20, 570 - 20)):
        assert most - 5 <= limit <= most


def test_an_unknown_step(check):
    done, statuses, _ = check("benhc")
    assert done.returncode == 1
    assert statuses == {}
    assert "expected steps among tests, sanitize, bench, got 'benhc'" in done.stderr


def test_without_a_gpu(check):
    done, statuses, _ = check(nvidia_smi="exit 9")
    assert done.returncode == 1
    assert statuses == {}
    assert "nvidia-smi says there is no GPU" in done.stderr
