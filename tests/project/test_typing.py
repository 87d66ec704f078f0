"""Names of gradkern that are imported lazily, as a type checker and `dir` see them."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gradkern

PACKAGE = Path(gradkern.__file__).parent
#: Every package of which some names are imported late, and a name of it misspelt.
LAZY = {
    "gradkern": "GradMonitr",
    "gradkern.distributed": "explain_nrom",
    "gradkern.report": "plot_los",
    "gradkern.sinks": "JsonSink",
}
#: Names imported late and what their types say.
KNOWN = {
    "gradkern.GradMonitor": "gradkern.monitor.monitor.GradMonitor",
    "gradkern.distributed.explain_norm": "gradkern.distributed.audit.NormAudit",
    "gradkern.report.save_figures": "pathlib.Path",
    "gradkern.sinks.JsonlSink": "gradkern.sinks.jsonl.JsonlSink",
    "gradkern.sinks.MlflowSink": "gradkern.sinks.mlflow.MlflowSink",
    "gradkern.sinks.TensorBoardSink": "gradkern.sinks.tensorboard.TensorBoardSink",
    "gradkern.sinks.WandbSink": "gradkern.sinks.wandb.WandbSink",
}
#: Large packages are not followed, because the tests are not about them.
CONFIGURATION = """
[mypy]
[mypy-torch.*,numpy.*,matplotlib.*,rich.*]
follow_imports = skip
[mypy-gradkern.*]
follow_imports = silent
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The messages of mypy for each line of a program that imports gradkern."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    folder = tmp_path_factory.mktemp("typing")
    (folder / "mypy.ini").write_text(CONFIGURATION)
    lines = [f"import {package}" for package in LAZY if package != "gradkern.distributed"]
    lines += [f"{package}.{name}" for package, name in LAZY.items()]
    lines += [f"reveal_type({name})" for name in KNOWN]
    (folder / "program.py").write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "program.py"],
        cwd=folder,
        env={**os.environ, "MYPYPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    found = re.findall(r"^program\.py:(\d+): (.*)$", done.stdout, re.MULTILINE)
    assert found, done.stdout + done.stderr
    return {lines[int(number) - 1]: message for number, message in found}


@pytest.mark.integration
@pytest.mark.parametrize(("package", "misspelt"), LAZY.items())
def test_a_misspelt_name_fails(said, package, misspelt):
    assert f'error: Module has no attribute "{misspelt}"' in said[f"{package}.{misspelt}"]


@pytest.mark.integration
@pytest.mark.parametrize(("name", "kind"), KNOWN.items())
def test_a_lazy_name_has_its_type(said, name, kind):
    assert kind in said[f"reveal_type({name})"]


@pytest.mark.integration
def test_nothing_else_is_complained_of(said):
    expected = [f"{p}.{n}" for p, n in LAZY.items()] + [f"reveal_type({n})" for n in KNOWN]
    assert sorted(said) == sorted(expected)


def test_lazy_names_complete(run_with_torch):
    """All names are listed before they are imported, and exist."""
    code = f"""
import importlib, gradkern
print("distributed" in dir(gradkern), gradkern.distributed.__name__)
for package in map(importlib.import_module, {[*LAZY]}):
    listed = dir(package)
    print([name for name in package.__all__ if name not in listed or not hasattr(package, name)])
"""
    done = run_with_torch(code)
    assert done.stdout.splitlines() == ["True gradkern.distributed", *["[]"] * len(LAZY)], done.stderr


def test_public_packages_are_attributes(run_with_torch):
    packages = ("compat", "diagnosis", "history", "integrations", "monitor", "policies", "report", "sinks")
    done = run_with_torch(f"import gradkern\nprint(*[getattr(gradkern, p).__name__ for p in {packages}])")
    assert done.stdout.split() == [f"gradkern.{package}" for package in packages], done.stderr


@pytest.mark.parametrize("package", LAZY)
def test_a_missing_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute '{LAZY[package]}'"):
        getattr(importlib.import_module(package), LAZY[package])


def test_files_other_than_python_are_installed():
    """The stub of the extension among it: without it the extension is Any where gradkern is installed."""
    root = Path(__file__).resolve().parents[2]
    listed = re.search(
        r"^package-data = \{ gradkern = (\[.*\]) \}$", (root / "pyproject.toml").read_text(), re.M
    )
    covered = {p for pattern in ast.literal_eval(listed[1]) for p in (root / "gradkern").glob(pattern)}
    built = {".py", ".pyc", ".so"}
    data = {p for p in (root / "gradkern").rglob("*") if p.is_file() and p.suffix not in built}
    assert root / "gradkern" / "_C.pyi" in data and data <= covered
