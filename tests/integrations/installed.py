"""Frameworks that may not be installed; in the environment of requirements/integration.txt all are."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

#: Set by `make integration`: a package that is missing fails its tests, which are skipped otherwise.
REQUIRED = bool(os.environ.get("GRADKERN_INTEGRATION"))


def framework(name: str) -> ModuleType:
    """Imports a framework and returns its module. Skips the tests of the file if it is not installed."""
    if REQUIRED:
        return importlib.import_module(name)
    return pytest.importorskip(name, reason=f"{name} is not installed")


def needed(name: str) -> None:
    """Like `framework`, but without importing it, for tests that run it in separate processes."""
    if importlib.util.find_spec(name.split(".")[0]) is None:
        if REQUIRED:
            raise ModuleNotFoundError(name)
        pytest.skip(f"{name} is not installed", allow_module_level=True)


def without_torchvision(package: str, module: str) -> ModuleType:
    """A module of a package whose own code, which imports torchvision, is not run (timm)."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        return framework(package)
    parents = [".".join([package, *module.split(".")[:depth]]) for depth in range(module.count(".") + 1)]
    folder = Path(spec.submodule_search_locations[0])
    try:
        for parent in parents:
            bare = sys.modules[parent] = ModuleType(parent)
            bare.__path__ = [str(folder.joinpath(*parent.split(".")[1:]))]
        return importlib.import_module(f"{package}.{module}")
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            del sys.modules[name]


def run_page(page: str) -> dict[str, object]:
    """Run the Python of a page of docs/frameworks, block after block in one namespace, which is returned."""
    path = Path(__file__).parents[2] / "docs" / "frameworks" / page
    blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks
    names: dict[str, object] = {"__name__": path.stem}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{page}, block {number}", "exec"), names)
    return names


def code_of(path: str, language: str, number: int = 0) -> str:
    """A code block of a page. For a diff, the code after the change."""
    text = (Path(__file__).parents[2] / path).read_text(encoding="utf-8")
    block = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[number]
    return (
        "\n".join(line[2:] for line in block.splitlines() if line[0] == "+") if language == "diff" else block
    )


def run_ranks(module: str, folder: os.PathLike[str], *words: object) -> None:
    """Run a module of this folder with forked ranks; its output is shown where it fails."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"tests.integrations.{module}", str(folder), *map(str, words)],
        cwd=os.path.join(os.path.dirname(__file__), "..", ".."),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=560,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
