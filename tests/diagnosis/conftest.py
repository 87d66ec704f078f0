"""Every test of a rule runs twice: with what the graph of the loss tells, and without it."""

from __future__ import annotations

from typing import Any

import pytest

from gradkern.diagnosis import RunEvidence

#: Files that test no rule: commands, files, words of modules, labelled runs.
OTHERS = ("command", "drawn_set", "events", "load", "suite", "watchdog", "words")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    name = metafunc.module.__name__.rpartition("test_")[2]
    if name not in OTHERS and "graph" in metafunc.fixturenames:
        metafunc.parametrize("graph", [True, False], ids=["graph", "opaque"], indirect=True)


@pytest.fixture(autouse=True)
def graph(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether rules see the graph. Without it all evidence loses the facts that it tells."""
    seen = getattr(request, "param", True)
    if not seen:
        made = RunEvidence.__init__

        def without(self: RunEvidence, *args: Any, **fields: Any) -> None:
            made(self, *args, **fields)
            object.__setattr__(self, "facts", {**self.facts, "graph": {}})

        monkeypatch.setattr(RunEvidence, "__init__", without)
    return seen
