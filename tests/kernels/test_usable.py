"""The message for a GPU on which the CUDA kernels do not run, and the architectures that a build chooses."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import gradkern
from gradkern._util.warning import GradkernWarning
from gradkern.kernels.usable import tell_unusable

ROOT = Path(__file__).resolve().parents[2]


def test_notice_names_device_reason_and_remedy():
    with pytest.warns(GradkernWarning, match=r"cuda:1: no code for 7\.5.*TORCH_CUDA_ARCH_LIST"):
        tell_unusable("cuda:1", "no code for 7.5")


@pytest.mark.skipif(gradkern.build_info()["cuda"] != "", reason="this build has CUDA kernels")
def test_a_build_without_kernels_says_so():
    from gradkern.kernels.extension import EXTENSION as _C

    assert _C.why_unusable(0) == "this build of gradkern has no CUDA kernels"


def architectures(folder: Path, wanted: str | None, gpus: str | None) -> str:
    """What cmake/cuda.cmake chooses where nvcc knows 8.0 to 12.0 and nvidia-smi shows `gpus`."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    known = "\n".join(f"sm_{a}" for a in (80, 86, 89, 90, 100, 103, 120))
    programs = {"nvcc": f"printf '{known}\n'", "nvidia-smi": f"printf '{gpus}'" if gpus else "exit 9"}
    for name, body in programs.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    script = folder / "choose.cmake"
    script.write_text(
        f"""set(GRADKERN_CUDA 0)
include({ROOT}/cmake/cuda.cmake)
set(CMAKE_CUDA_COMPILER {tools}/nvcc)
gradkern_cuda_architectures(chosen)
message(STATUS "chosen: ${{chosen}}")
"""
    )
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    environment.pop("TORCH_CUDA_ARCH_LIST", None)
    if wanted is not None:
        environment["TORCH_CUDA_ARCH_LIST"] = wanted
    cmake = shutil.which("cmake") or pytest.skip("needs cmake")
    done = subprocess.run(
        [cmake, "-P", str(script)], env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout.partition("chosen: ")[2].strip() or done.stderr


@pytest.mark.parametrize(
    ("wanted", "gpus", "chosen"),
    [
        (None, None, "90-real;86-virtual"),
        (None, "8.0\n8.0\n9.0\n", "80;90-real"),
        ("native", "10.3\n", "103"),
        ("all", None, "80-real;86-real;89-real;90-real;100-real;103-real;120-real;86-virtual"),
        ("8.0;9.0+PTX", "12.0\n", "80-real;90"),
        (None, "7.5\n", "86-virtual"),
    ],
)
def test_architectures(tmp_path, wanted, gpus, chosen):
    assert architectures(tmp_path, wanted, gpus) == chosen


@pytest.mark.parametrize(
    ("wanted", "says"), [("native", "nvidia-smi shows no GPU"), ("hopper", "got 'hopper'")]
)
def test_architectures_that_make_no_sense(tmp_path, wanted, says):
    assert says in " ".join(architectures(tmp_path, wanted, None).split())
