"""Fused total norms of other libraries, where they are installed. None is a dependency.

A peer takes a list of CUDA tensors and returns their total L2 norm on the device. Besides those below,
`bench_cuda.py --peer FILE.py` takes any from a file that defines ``PEERS = {"name": function}``.
"""

from __future__ import annotations

import importlib
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

TotalNorm = Callable[[Sequence[Tensor]], Tensor]


def _multi_tensor(applier_module: str, kernels_module: str) -> TotalNorm:
    """The interface of Apex, which Transformer Engine shares."""
    applier = importlib.import_module(applier_module).multi_tensor_applier
    kernel = importlib.import_module(kernels_module).multi_tensor_l2norm
    overflow = torch.zeros(1, dtype=torch.int, device="cuda")

    # These kernels take one dtype per launch.
    def total_norm(grads: Sequence[Tensor]) -> Tensor:
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for grad in grads:
            by_dtype.setdefault(grad.dtype, []).append(grad)
        norms = [applier(kernel, overflow, [list_], False)[0] for list_ in by_dtype.values()]
        return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.cat(norms))

    return total_norm


INSTALLED = {
    "apex": ("apex.multi_tensor_apply", "amp_C"),
    "transformer_engine": ("transformer_engine.pytorch.optimizers", "transformer_engine_torch"),
}


def find(files: Sequence[Path] = ()) -> dict[str, TotalNorm]:
    """The peers that can be imported here, and those of `files`."""
    found: dict[str, TotalNorm] = {}
    for name, modules in INSTALLED.items():
        try:
            found[name] = _multi_tensor(*modules)
        except (ImportError, AttributeError) as error:
            print(f"peer {name}: not here ({error})")
    for file in files:
        found.update(runpy.run_path(str(file))["PEERS"])
    return found
