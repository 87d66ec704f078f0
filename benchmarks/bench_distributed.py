"""Clipping FSDP2 models on gloo, compared with torch: total and host time per call.

    torchrun --nproc-per-node 2 benchmarks/bench_distributed.py --save

All contenders clip the same gradients of the same model, in turn, in the same process. Total is the time of a
call on gloo, from a barrier to the norm on the host: the median over rounds of the slowest rank. Host is the
fastest time of the same call on torch's fake process group of the same size, whose collectives do nothing. On
a machine with fewer cores than ranks, the totals mostly measure the scheduler.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from machine import describe
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import gradkern

RESULT = Path(__file__).parent / "results" / "distributed_cpu.json"
WARM_UP = 3


def sharded(blocks: int, width: int) -> nn.Module:
    """Parameters, four per block, each a DTensor with a gradient."""
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


def contenders(model: nn.Module, max_norm: float) -> dict[str, Callable[[], object]]:
    params = list(model.parameters())
    clipper = gradkern.GradClipper(model, max_norm)
    return {
        "torch": lambda: nn.utils.clip_grad_norm_(params, max_norm).full_tensor().item(),
        "clip_grad_norm_": lambda: gradkern.clip_grad_norm_(params, max_norm).full_tensor().item(),
        "GradClipper": lambda: clipper.clip_().total_norm.item(),
    }


def timed(calls: dict[str, Callable[[], object]], repeats: int, *, together: bool) -> dict[str, list[float]]:
    """Seconds of each call, one contender after the other in every round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(repeats + WARM_UP):
        for name, call in calls.items():
            if together:
                dist.barrier()
            begin = time.perf_counter()
            call()
            seconds = torch.tensor(time.perf_counter() - begin, dtype=torch.float64)
            if together:
                dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
            if round_ >= WARM_UP:
                times[name].append(float(seconds))
    return times


def measured(arguments: argparse.Namespace, *, together: bool) -> list[dict[str, object]]:
    rows = []
    for blocks in arguments.blocks:
        for clips in (False, True):
            # A norm of 1e-6 of the gradients' keeps clipping, round after round.
            calls = contenders(sharded(blocks, arguments.width), 1e-6 if clips else 1e9)
            times = timed(calls, arguments.repeats, together=together)
            typical = statistics.median if together else min
            seconds = {name: typical(values) for name, values in times.items()}
            rows.append({"params": 4 * blocks, "clips": clips, "seconds": seconds})
    return rows


def host_only(arguments: argparse.Namespace, world: int) -> list[dict[str, object]]:
    """Measure the same calls on a process group whose collectives do nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    rows = measured(arguments, together=False)
    dist.destroy_process_group()
    return rows


def save(entry: dict[str, object]) -> None:
    record = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {"runs": {}}
    record["machine"] = describe()
    record["runs"][str(entry["ranks"])] = entry
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[10, 80], help="four parameters a block")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--save", action="store_true", help=f"into {RESULT.name}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    total = measured(arguments, together=True)
    dist.destroy_process_group()  # the other ranks end here
    if rank == 0:
        entry = {
            "ranks": world,
            "width": arguments.width,
            "total": total,
            "host": host_only(arguments, world),
        }
        if arguments.save:
            save(entry)
        print(json.dumps(entry, indent=1))


if __name__ == "__main__":
    main()
