"""docs/reference.md lists every public name, under the path that users import it from."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reference.md").read_text(encoding="utf-8")
LISTED = set(re.findall(r"^::: (\S+)$", PAGE, re.M))
#: Functions in a module of the same name, listed by their module and shown under their public path.
SHADOWED = {
    "gradkern.policies.custom": "gradkern.clipping.policies.custom.custom",
    "gradkern.diagnose": "gradkern.diagnosis.diagnose.diagnose",
}


@pytest.mark.parametrize("package", ["", ".policies", ".sinks", ".report", ".distributed", ".compat"])
def test_every_public_name_is_listed(package):
    module = f"gradkern{package}"
    names = {f"{module}.{name}" for name in importlib.import_module(module).__all__ if name != "__version__"}
    assert {name for name in names if SHADOWED.get(name, name) not in LISTED} == set()


def test_nothing_else_is_listed():
    public = LISTED - set(SHADOWED.values())
    assert len(public) > 60
    internal = r"gradkern\.(clipping|params|kernels|monitor|_util|diagnosis)\."
    assert [name for name in sorted(public) if re.match(internal, name)] == []


@pytest.mark.parametrize("name", SHADOWED)
def test_a_shadowed_name_has_its_anchor_and_heading(name):
    assert f'<a id="{name}"></a>' in PAGE
    assert re.search(
        rf"::: {re.escape(SHADOWED[name])}\n    options:\n      heading: {re.escape(name)}\n", PAGE
    )
