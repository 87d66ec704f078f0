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


def floor(tensors: Sequence[Tensor], write: bool, more: Sequence[tuple[int, int]] = ()) -> Callable[[], None]:
    """A function that reads (and then, if `write`, also rewrites) every byte of `tensors` once.

    Args:
        tensors: whose elements to read.
        write: whether to rewrite them afterwards.
        more: further memory to read first, as (address, bytes).
    """
    elements = _Blocks([(t.data_ptr(), t.numel() * t.element_size()) for t in tensors])
    others = _Blocks(more)

    def run() -> None:
        if more:
            _LIBRARY.gradkern_floor_read(*others.arguments)
        _LIBRARY.gradkern_floor_read(*elements.arguments)
        if write:
            _LIBRARY.gradkern_floor_write(*elements.arguments)

    return run


class _Blocks:
    def __init__(self, blocks: Sequence[tuple[int, int]]) -> None:
        count = len(blocks)
        addresses = (ctypes.c_void_p * count)(*[address for address, _ in blocks])
        sizes = (ctypes.c_int64 * count)(*[size for _, size in blocks])
        self.arguments = (addresses, sizes, ctypes.c_int64(count))


def metadata(parameters: Sequence[Tensor]) -> list[tuple[int, int]]:
    """The memory that leads from parameters to their gradients' elements, as (address, bytes).

    The parameter's Python object, the TensorImpls of parameter and gradient, and the gradient's storage. The
    object between the two TensorImpls is out of Python's reach.
    """
    blocks = []
    for parameter in parameters:
        grad = parameter.grad
        assert grad is not None
        blocks += [(id(parameter), 32), (parameter._cdata, 64)]
        blocks += [(grad._cdata, 208), (grad.untyped_storage()._cdata, 64)]
    return blocks
