"""scripts/check_kernels.py checks all code that is written in PTX. Needs no nvcc."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "check_kernels.py"), run_name="check_kernels")
HELPERS = SCRIPT["HELPERS"]
SOURCES = sorted(path for kind in ("*.h", "*.cu") for path in (ROOT / "csrc" / "cuda").glob(kind))
INLINE = [
    (path.name, text)
    for path in SOURCES
    for text in re.findall(r'\basm\b(?:\s+volatile)?\s*\(\s*"([^"]+)"', path.read_text(encoding="utf-8"))
]


def test_there_is_inline_ptx():
    assert len(INLINE) == sum(len(re.findall(r"\basm\b", p.read_text(encoding="utf-8"))) for p in SOURCES)
    assert len(INLINE) > 10


@pytest.mark.parametrize(("file", "text"), INLINE)
def test_inline_ptx_has_a_helper(file, text):
    instruction = re.escape(text.split()[0].rstrip(";"))
    assert any(instruction in helper.ptx for helper in HELPERS), f"{file}: {text}"


def test_every_helper_is_compiled():
    kernels = re.findall(
        r"void use_(\w+)\(", (ROOT / "csrc/tests/ptx_helpers.cu").read_text(encoding="utf-8")
    )
    assert set(kernels) == {helper.name for helper in HELPERS}


def test_every_kernel_has_a_budget():
    text = "".join(path.read_text(encoding="utf-8") for path in SOURCES if path.suffix == ".cu")
    kernels = set(re.findall(r"(\w+_kernel)\(const __grid_constant__", text))
    small = {"write_table_kernel"}  # of a default budget
    assert kernels == {name.partition("[")[0] for name in SCRIPT["BUDGETS"]} | small


@pytest.mark.parametrize("arch", SCRIPT["ARCHITECTURES"])
@pytest.mark.parametrize("name", ["measure_kernel[0]", "scale_kernel", "combine_kernel"])
def test_spills_have_a_budget(name, arch):
    most = SCRIPT["SPILLS"].get(name, {}).get(arch, 0)

    def problems(spills):
        return SCRIPT["check_resources"](SCRIPT["Kernel"](name, 32, 0, spills), arch)

    assert problems(most) == []
    assert problems(most + 4) == [f"{most + 4} bytes spilled, at most {most}"]


def test_spills_are_read_from_the_report():
    report = """ptxas info    : Compiling entry function '_Z12scale_kernelv' for 'sm_90'
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 64 registers, 8 bytes cumulative stack size"""
    (kernel,) = SCRIPT["parse_resources"](report)
    assert (kernel.name, kernel.registers, kernel.stack, kernel.spills) == ("scale_kernel", 64, 8, 28)


@pytest.mark.parametrize("arch", ["90", "100"])
@pytest.mark.parametrize("number", range(4))
def test_a_measure_kernel_keeps_to_64_kib_of_code(number, arch):
    def problems(instructions):
        lines = ["        /*0000*/                   NOP ;"] * instructions
        return SCRIPT["check_code"](f"measure_kernel[{number}]", lines, arch)[1]

    limit = (64 << 10) // 16
    assert any(problem.startswith(f"{limit + 1} instructions of code") for problem in problems(limit + 1))
    assert not any("instructions of code" in problem for problem in problems(3900))
