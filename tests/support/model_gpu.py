"""A CUDA device for a torch without one, to run the code for CUDA on the CPU: csrc/tests/model_gpu.

`install()` must come before the first import of torch. As a plugin of pytest this module does that:

    python -m pytest -p tests.support.model_gpu -m cuda tests/cuda/test_cuda_correctness.py
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc" / "tests" / "model_gpu"
BUILD = ROOT / "build" / "model-gpu"


def _run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def build() -> tuple[Path, Path]:
    """Compile the library of kernels and torch's device; returns both files."""
    sys.path.insert(0, str(ROOT / "build_tools"))
    from kernels import tool
    from torches import torches

    options = ("-DGRADKERN_PYTHON=OFF", "-DGRADKERN_TESTS=ON", "-DGRADKERN_CUDA=0")
    _run(
        tool("cmake"),
        "-S",
        ROOT,
        "-B",
        BUILD,
        "-G",
        "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
        *options,
    )
    _run(tool("cmake"), "--build", BUILD, "--target", "model_kernels")
    kernels = BUILD / "csrc" / "tests" / "libgradkern_kernels.so"
    torch = torches()[0]
    source, device = SOURCES / "device.cpp", BUILD / f"device-{torch.version}.so"
    if not device.exists() or device.stat().st_mtime < source.stat().st_mtime:
        includes, libraries = torch.folder / "include", torch.folder / "lib"
        _run(
            os.environ.get("CXX", "g++"), "-std=c++20", "-O2", "-shared", "-fPIC", "-w", source, "-o", device,
            f"-I{includes}", f"-I{includes}/torch/csrc/api/include", f"-L{libraries}", "-lc10", "-ltorch_cpu",
            f"-Wl,-rpath,{libraries}",
        )  # fmt: skip
    return kernels, device


class _Done:
    """An event or a stream whose work is done."""

    def __init__(self, *_: object, **__: object) -> None: ...
    def record(self, *_: object) -> None: ...
    def wait(self, *_: object) -> None: ...
    def wait_stream(self, *_: object) -> None: ...
    def wait_event(self, *_: object) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True


def install() -> ctypes.CDLL:
    """Give torch the device and gradkern the kernels; returns the library of kernels."""
    if "torch" in sys.modules:
        raise RuntimeError("model_gpu: install() must come before the first import of torch")
    kernels, device = build()
    # The binding finds a library of this name loaded and takes it for the package's.
    library = ctypes.CDLL(str(kernels), mode=os.RTLD_GLOBAL)
    torch_side = ctypes.CDLL(str(device), mode=os.RTLD_GLOBAL)
    import torch

    answers: dict[str, Any] = {
        "_lazy_init": None,
        "is_available": True,
        "device_count": 2,
        "current_device": 0,
        "get_device_name": "a model",
        "is_current_stream_capturing": False,
        "synchronize": None,
        "mem_get_info": (1 << 30, 1 << 30),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch.cuda.Event = torch.cuda.Stream = _Done
    torch.cuda.current_stream = lambda *_: _Done()
    torch.cuda.stream = lambda *_: contextlib.nullcontext()
    torch.cuda.set_sync_debug_mode = lambda mode: torch_side.model_gpu_refuse_waiting(mode == "error")
    return library


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    install()
