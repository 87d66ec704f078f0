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
