"""Fused total norms of other libraries, where they are installed. None is a dependency.

A peer takes a list of CUDA tensors and returns their total L2 norm on the device. `find` takes those that can
be imported, and says of the others how to install them. `bench_cuda.py --peer FILE.py` takes any from a file
that defines ``PEERS = {"name": function}``.
"""

from __future__ import annotations

import importlib
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


def _nemo_automodel() -> TotalNorm:
    """The Triton kernel of NeMo Automodel, one launch per dtype."""
    module = importlib.import_module("nemo_automodel.components.training.triton.grad_norm")
    sum_of_squares = module.multi_tensor_sumsq
    return lambda grads: sum_of_squares(grads).sqrt()


@dataclass(frozen=True)
class Peer:
    load: Callable[[], TotalNorm]
    install: str  #: a command


INSTALLABLE = {
    "apex": Peer(
        lambda: _multi_tensor("apex.multi_tensor_apply", "amp_C"),
        "pip install --no-build-isolation --config-settings=--build-option=--cpp_ext "
        "--config-settings=--build-option=--cuda_ext git+https://github.com/NVIDIA/apex",
    ),
    "transformer_engine": Peer(
        lambda: _multi_tensor("transformer_engine.pytorch.optimizers", "transformer_engine_torch"),
        "pip install --no-build-isolation 'transformer_engine[pytorch]'",
    ),
    "nemo_automodel": Peer(_nemo_automodel, "pip install nemo_automodel triton"),
}


def find(files: Sequence[Path] = ()) -> dict[str, TotalNorm]:
    """The peers that can be imported here, and those of `files`. Prints a line for each that is missing."""
    found: dict[str, TotalNorm] = {}
    for name, peer in INSTALLABLE.items():
        try:
            found[name] = peer.load()
        # A library that was built for another torch fails in its own way.
        except (ImportError, AttributeError, OSError, RuntimeError) as error:
            print(f"peer {name}: not here ({error}); to install it: {peer.install}")
    for file in files:
        found.update(runpy.run_path(str(file))["PEERS"])
    return found
