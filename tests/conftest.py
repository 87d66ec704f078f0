"""Settings and fixtures of all tests."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
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
        out = set(deselected)
        items[:] = [item for item in items if item not in out]


def pytest_collection_finish() -> None:
    """Freeze loaded objects so that the garbage collector skips them."""
    gc.collect()
    gc.freeze()


#: Files that share something slow to start, by the beginnings of their names: one worker runs them all.
SHARED = {
    "pools of ranks": ("distributed/",),
    "a warm Python, and torch's compiler": (
        "clipping/test_compile",
        "clipping/test_misuse",
        "clipping/test_param_groups",
        "clipping/test_routes",
        "kernels/test_determinism",
        "kernels/test_fallback",
        "kernels/test_kinds",
        "kernels/test_threads",
        "project/test_architecture",
        "project/test_bindings",
        "project/test_typing",
        "bench/test_bench_command",
        "demo/",
        "monitor/test_disks",
        "watch/",
    ),
}
#: Started first, in this order, because a long file that starts late leaves the other core idle at the end.
LONGEST = (
    "tests/kernels/test_model_gpu.py",
    "tests/kernels/test_ptx.py",
    *SHARED,
    "tests/report/test_browser.py",
    "tests/integrations/test_deepspeed.py",
    "tests/integrations/test_run.py",
    "tests/integrations/test_megatron_training.py",
    "tests/integrations/test_torchtitan.py",
    "tests/integrations/test_transformers.py",
)


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist, too
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One worker runs a file, or those of an entry of SHARED. After LONGEST come files with many tests."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", 1)[0]
            return next(
                (s for s, names in SHARED.items() if file.removeprefix("tests/").startswith(names)), file
            )

        def _assign_work_unit(self, node: Any) -> None:
            longest = next((scope for scope in LONGEST if scope in self.workqueue), None)
            if longest:
                self.workqueue.move_to_end(longest, last=False)
            super()._assign_work_unit(node)

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    import torch  # here: the process that hands tests to workers needs no torch

    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """`torch.set_num_threads`, restored afterwards."""
    import torch

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
    """Like `run_python`, but faster: in a fork of a process that has imported torch."""

    def run(
        code: str, path: Path = ROOT, timeout: float = 240, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        cwd, variables = _place(path, environment)
        return warm_python.run(code, cwd, variables, timeout)

    return run


@pytest.fixture(scope="session")
def _recorded_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that returns the folder of a small run, which only the first of equal calls records."""
    made: dict[str, Path] = {}

    def make(**options: object) -> Path:
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("recorded") / "run"
            record(made[key], **options)
        return made[key]

    return make


@pytest.fixture
def recorded(tmp_path: Path, _recorded_once: Callable[..., Path]) -> Callable[..., Path]:
    """A function that puts a small run into the test's folder and returns its folder."""

    def make(**options: object) -> Path:
        folder = tmp_path / str(options.pop("name", "run"))
        if (folder / "history.db").exists():  # continues the run
            record(folder, **options)
        else:
            shutil.copytree(_recorded_once(**options), folder, dirs_exist_ok=True)
        return folder

    return make
