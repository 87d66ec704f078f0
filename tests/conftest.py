"""Settings and fixtures of the whole suite."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.support.synthetic import record

ROOT = Path(__file__).resolve().parent.parent

# No deadline: the first example of a shape pays for torch's lazy set-up, and a deadline would only
# report how busy the machine is. `derandomize` keeps a red suite red until it is repaired.
settings.register_profile("default", deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
settings.register_profile("thorough", parent=settings.get_profile("default"), max_examples=1500)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
settings.load_profile(os.environ.get("GRADKERN_HYPOTHESIS", "ci"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked slow, cuda or integration run only when they are asked for by mark."""
    wanted = config.getoption("-m") or ""
    deselected = [
        item
        for item in items
        if any(item.get_closest_marker(m) and m not in wanted for m in ("slow", "cuda", "integration"))
    ]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in set(deselected)]


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """`torch.set_num_threads`, put back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs code in a fresh interpreter that sees this gradkern, with extra environment variables."""

    def run(
        code: str, path: Path = ROOT, timeout: float = 240, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("GRADKERN_")}
        import gradkern

        package = Path(gradkern.__file__).parent.parent if path is ROOT else path
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=package,  # python -c looks there before PYTHONPATH
            env={
                **inherited,
                "PYTHONPATH": os.pathsep.join([str(package), str(ROOT)]),
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[..., Path]:
    """A function that records a small run and returns its folder."""

    def make(**options: object) -> Path:
        folder = tmp_path / str(options.pop("name", "run"))
        record(folder, **options)
        return folder

    return make
