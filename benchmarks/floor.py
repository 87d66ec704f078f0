"""The memory floor: how long the same bytes take to read, or to read and write, on the same threads."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch  # noqa: F401  loads the OpenMP runtime that the compiled floor shares
from torch import Tensor


def _library() -> ctypes.CDLL:
    source = Path(__file__).with_name("floor.cpp")
    output = Path(tempfile.mkdtemp(prefix="gradkern-floor-")) / "floor.so"
    compiler = os.environ.get("CXX", "c++")
    flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, str(source), "-o", str(output)], check=True)
    return ctypes.CDLL(str(output))


_LIBRARY = _library()


def floor(tensors: Sequence[Tensor], write: bool) -> Callable[[], None]:
    """A function that reads (and then, if `write`, also rewrites) every byte of `tensors` once."""
    count = len(tensors)
    pointers = (ctypes.c_void_p * count)(*[t.data_ptr() for t in tensors])
    sizes = (ctypes.c_int64 * count)(*[t.numel() * t.element_size() for t in tensors])
    n = ctypes.c_int64(count)

    def run() -> None:
        _LIBRARY.gradkern_floor_read(pointers, sizes, n)
        if write:
            _LIBRARY.gradkern_floor_write(pointers, sizes, n)

    return run
