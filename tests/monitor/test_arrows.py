"""The arrows between the packages that record, send and show: all point at the monitor."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gradkern

ROOT = Path(gradkern.__file__).parent
#: What each may import of the others.
ALLOWED = {
    "monitor": set(),
    "sinks": {"monitor"},
    "report": {"monitor"},
    "watch": {"monitor"},
}
IMPORT = re.compile(r"^\s*(?:from|import) gradkern\.(\w+)", re.MULTILINE)
#: A monitor takes sinks, and their names: it finds them when it is made, as it finds a diagnosis.
MEETS_SINKS = ROOT / "monitor" / "monitor.py"


@pytest.mark.parametrize("package", ALLOWED)
def test_arrows_run_one_way(package):
    files = sorted((ROOT / package).glob("*.py"))
    assert len(files) > 3
    for file in files:
        others = set(IMPORT.findall(file.read_text(encoding="utf-8"))) & set(ALLOWED) - {package}
        allowed = {"sinks"} if file == MEETS_SINKS else ALLOWED[package]
        assert others <= allowed, file


def test_importing_a_monitor_imports_nothing_above_it(run_python):
    code = """
import sys
from gradkern.monitor import monitor, export, words
print([m for m in sys.modules if m.startswith(("gradkern.sinks", "gradkern.report", "gradkern.watch"))])
"""
    done = run_python(code)
    assert done.stdout.strip() == "[]", done.stderr
