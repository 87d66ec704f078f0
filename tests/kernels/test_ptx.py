"""The CUDA kernels as nvcc compiles them, executed on the host (scripts/run_ptx.py). Needs nvcc, no GPU."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "run_ptx.py"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not (shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")), reason="needs nvcc"
    ),
    pytest.mark.timeout(1800),
]


def run_ptx(*arguments: str) -> str:
    command = [sys.executable, str(SCRIPT), "build/ptx", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


def test_ptx_computes_what_the_source_computes():
    """Every test of the kernels: against float64, and bit for bit."""
    assert " 0 failures" in run_ptx()


#: Architectures differ in maxima of 16-bit types and in squares as pairs of float32.
PARTS = ("adversarial_sums", "units_of_all_kinds", "mixed_list", "one_nonfinite", "tiny_factors")
#: From sm_100 on, nvcc optimises in other ways, and writes other instructions for every kernel.
OTHER_CODE = ("scale_by_factors", "agc_same_bits", "policies")


@pytest.mark.parametrize(
    ("arch", "more"), [("80", ()), ("86", ()), ("100", OTHER_CODE), ("103", ()), ("120", ())]
)
def test_ptx_of_other_architectures(arch, more):
    assert " 0 failures" in run_ptx("--arch", arch, *PARTS, *more)


def test_order_of_blocks_and_warps_does_not_show():
    run_ptx("--seed", "1", "determinism", "repeats", "random_lists", "agc_many")


def test_changed_ptx_is_noticed():
    assert " 0 not noticed" in run_ptx("--mutants")
