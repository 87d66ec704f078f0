"""The page's script without a browser: its model under node, and the size of its functions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import gradkern

ASSETS = Path(gradkern.__file__).parent / "report" / "assets"
SCRIPTS = sorted(ASSETS.glob("*.js"))


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_model_under_node():
    done = subprocess.run(
        ["node", "--test", str(Path(__file__).with_name("model.test.mjs"))],
        env={**os.environ, "GRADKERN_ASSETS": str(ASSETS)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"pass 11\b", done.stdout), done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_functions_are_short(path):
    """At most 40 lines from a function's or method's head to the brace that closes it, by indentation."""
    lines = path.read_text(encoding="utf-8").splitlines()
    heads = [i for i, line in enumerate(lines) if re.match(r"(  )?(async )?(function )?\w+\(.*\) \{$", line)]
    for start in heads:
        indent = re.match(r" *", lines[start]).group()
        end = next(i for i in range(start + 1, len(lines)) if lines[i] == indent + "}")
        assert end - start <= 40, f"{path.name}:{start + 1} {lines[start].strip()}"


def test_the_vendored_library_comes_with_its_licence():
    assert "Permission is hereby granted" in (ASSETS / "vendor" / "uPlot.LICENSE").read_text(encoding="utf-8")
    version = (ASSETS / "vendor" / "uPlot.iife.min.js").read_text(encoding="utf-8").splitlines()[0]
    assert version == "/*! https://github.com/leeoniya/uPlot (v1.6.32) */"
