"""Settings and fixtures of all tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.support.synthetic import record
from tests.support.warm import WarmPython

ROOT = Path(__file__).resolve().parent.parent

# No deadline: the first example of a shape pays for torch's lazy set-up, and a deadline would only
# report how busy the machine is. `derandomize` keeps a red suite red until it is repaired.
settings.register_profile("default", deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
settings.register_profile("thorough", parent=settings.get_profile("default"), max_examples=1500)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
settings.load_profile(os.environ.get("GRADKERN_HYPOTHESIS", "ci"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run tests marked slow, cuda or integration only if the option -m names the mark."""
    wanted = config.getoption("-m") or ""
    deselected = [
        item
        for item in items
        if any(item.get_closest_marker(m) and m not in wanted for m in ("slow", "cuda", "integration"))
    ]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in set(deselected)]


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist, too
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file is run by one worker, and so is tests/distributed, whose files share pools of ranks."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFileOrRoom(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", 1)[0]
            return "tests/distributed" if file.startswith("tests/distributed/") else file

    return ByFileOrRoom(config, log)


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """`torch.set_num_threads`, restored afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def _place(path: Path, environment: dict[str, str]) -> tuple[Path, dict[str, str]]:
    """The folder that a program starts in, and its environment variables, so that it sees this gradkern."""
    import gradkern

    package = Path(gradkern.__file__).parent.parent if path is ROOT else path
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("GRADKERN_")}
    paths = os.pathsep.join([str(package), str(ROOT)])
    return package, {**inherited, "PYTHONPATH": paths, **environment}  # python -c looks in its folder first


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs code in a new interpreter that sees this gradkern, with extra environment variables."""

    def run(
        code: str, path: Path = ROOT, timeout: float = 240, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        cwd, variables = _place(path, environment)
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=cwd,
            env=variables,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture(scope="session")
def warm_python() -> Iterator[WarmPython]:
    python = WarmPython()
    yield python
    python.close()


@pytest.fixture
def run_with_torch(warm_python: WarmPython) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `run_python`, faster: in a fork of a process that has imported torch, and `preload`."""

    def run(
        code: str, path: Path = ROOT, timeout: float = 240, preload: Sequence[str] = (), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        cwd, variables = _place(path, environment)
        return warm_python.run(code, cwd, variables, timeout, preload)

    return run


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[..., Path]:
    """A function that records a small run and returns its folder."""

    def make(**options: object) -> Path:
        folder = tmp_path / str(options.pop("name", "run"))
        record(folder, **options)
        return folder

    return make
