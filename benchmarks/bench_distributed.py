"""Clip beside torch's for FSDP2 on gloo: total time a call on rank 0.

    torchrun --nproc-per-node 2 benchmarks/bench_distributed.py --blocks 20

Both clip the same gradients of the same model, in turn, in the same process; the median of the calls is
printed with the spread. On a machine with fewer cores than ranks the figures are those of the scheduler.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import gradkern


def sharded(blocks: int, width: int) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    made = (nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width)) for _ in range(blocks))
    model = nn.Sequential(*made)
    for block in model:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
        p.grad._local_tensor.normal_()
    return model


def timed(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each call, one after the other in every round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(repeats + 2):
        for name, call in calls.items():
            dist.barrier()
            begin = time.perf_counter()
            call()
            if round_ >= 2:  # the first rounds warm caches up
                times[name].append(1e3 * (time.perf_counter() - begin))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=20, help="four parameters a block")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model = sharded(arguments.blocks, arguments.width)
    params = list(model.parameters())
    clipper = gradkern.GradClipper(model, 1e9)
    times = timed(
        {
            "torch.nn.utils.clip_grad_norm_": lambda: nn.utils.clip_grad_norm_(params, 1e9).full_tensor(),
            "gradkern.clip_grad_norm_": lambda: gradkern.clip_grad_norm_(params, 1e9).full_tensor(),
            "gradkern.GradClipper.clip_": lambda: clipper.clip_(),
        },
        arguments.repeats,
    )
    if dist.get_rank() == 0:
        print(f"{dist.get_world_size()} ranks, {len(params)} parameters, torch {torch.__version__}, gloo")
        for name, values in times.items():
            spread = f"min {min(values):8.2f}  max {max(values):8.2f}"
            print(f"{name:32} median {statistics.median(values):8.2f} ms  {spread}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
