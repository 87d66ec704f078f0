"""What a clip costs at 8 to 16,384 ranks, from measured parts: simulate_scale.py [--save]

    seconds = host(params) + collectives * (hops(ranks) * latency + 2 * bytes / bandwidth)

Host: measured here, on parameters that are sharded over as many ranks as asked for, with torch's fake
process group, whose collectives do nothing (the fastest of 7 calls); a line is fitted over the number of
parameters. Collectives: assumed, a tree with 2 * log2(ranks) hops; latency and bandwidth are arguments.
Checks: the line beside counts of parameters that it was not fitted to, the host cost beside other numbers
of ranks, and, at 2 and 4 gloo processes of this machine, whole calls beside the line plus bare all-reduces
of the sizes that the call sends.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from machine import describe
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import gradkern

RESULT = Path(__file__).parent / "results" / "scale_cpu.json"
FITTED, HELD_OUT = (300, 1000, 2000, 5000), (600, 3000)
TORCH_MOST = 2000
RANKS, MODEL_RANKS = (8, 1024, 16384), (8, 64, 512, 4096, 16384)
Call = Callable[[], Any]


def sharded_parameters(count: int, elements: int = 64) -> list[nn.Parameter]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    shape, stride = torch.Size((elements * mesh.size(),)), (1,)

    def sharded() -> DTensor:
        local = torch.randn(elements)
        return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)

    params = [nn.Parameter(sharded()) for _ in range(count)]
    for p in params:
        p.grad = sharded()
    return params


def contenders(count: int) -> dict[str, Call]:
    params = sharded_parameters(count)
    clipper = gradkern.GradClipper(params, 1e9)
    return {
        "torch": lambda: nn.utils.clip_grad_norm_(params, 1e9).full_tensor(),
        "clip_grad_norm_": lambda: gradkern.clip_grad_norm_(params, 1e9).full_tensor(),
        "GradClipper": clipper.clip_,
    }


def once(call: Call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def fastest_seconds(call: Call, repeats: int) -> float:
    times = []
    for round_ in range(repeats + 2):
        begin = time.perf_counter()
        call()
        if round_ >= 2:
            times.append(time.perf_counter() - begin)
    return min(times)


def host_seconds(ranks: int, counts: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of {ranks, params, seconds} on a process group whose collectives do nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    rows = []
    for count in counts:
        calls = contenders(count)
        if count > TORCH_MOST or (ranks > RANKS[0] and count > 300):
            del calls["torch"]  # its first call takes minutes
        first = {name: once(call) for name, call in calls.items()}
        seconds = {name: fastest_seconds(call, 7) for name, call in calls.items()}
        rows.append({"ranks": ranks, "params": count, "seconds": seconds, "first": first})
        print(rows[-1], flush=True)
    dist.destroy_process_group()
    return rows


def fitted_line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """(intercept, slope), with each point weighted by 1 / value to minimize relative errors."""
    weights = [1 / y**2 for _, y in points]
    total = sum(weights)
    mx = sum(w * x for w, (x, _) in zip(weights, points)) / total
    my = sum(w * y for w, (_, y) in zip(weights, points)) / total
    slope = sum(w * (x - mx) * (y - my) for w, (x, y) in zip(weights, points))
    slope /= sum(w * (x - mx) ** 2 for w, (x, _) in zip(weights, points))
    return my - slope * mx, slope


def collective_seconds(ranks: int, size: int, latency: float, bandwidth: float) -> float:
    return 2 * math.log2(ranks) * latency + 2 * size / bandwidth


def travel_seconds(name: str, ranks: int, params: int, latency: float, bandwidth: float) -> float:
    """Seconds of all collectives of a call on a one-dimensional mesh."""
    return sum(collective_seconds(ranks, size, latency, bandwidth) for size in sent(name, params))


def sent(name: str, params: int) -> tuple[int, ...]:
    """Bytes of each all-reduce of a call; see gradkern/distributed/packed.py."""
    if name == "torch":
        return (4,)
    return (88,) if name == "clip_grad_norm_" else (88 * (params + 1), 16 * (params + 1))


# ---- the check with real processes ----


def _gloo_rank(rank: int, world: int, store: str, count: int, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    calls: dict[str, Call] = {}
    for name in ("clip_grad_norm_", "GradClipper"):
        buffers = [torch.zeros(size // 8, dtype=torch.float64) for size in sent(name, count)]
        calls[f"{name}: all-reduces"] = lambda buffers=buffers: [dist.all_reduce(b) for b in buffers]
    calls |= contenders(count)
    answers = {}
    for name, call in calls.items():
        dist.barrier()
        answers[name] = fastest_seconds(call, 10)
    if rank == 0:
        results.put(answers)
    dist.barrier()
    dist.destroy_process_group()


def gloo_seconds(world: int, count: int) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    store = str(Path(tempfile.mkdtemp()) / "store")
    made = [
        context.Process(target=_gloo_rank, args=(rank, world, store, count, results)) for rank in range(world)
    ]
    for process in made:
        process.start()
    answers: dict[str, float] = results.get(timeout=300)
    for process in made:
        process.join()
    print(world, "gloo ranks", answers, flush=True)
    return answers


def checked_on_gloo(lines: dict[str, tuple[float, float]]) -> list[dict[str, Any]]:
    """The host line plus bare all-reduces of the same sizes, beside whole calls."""
    rows = []
    for world, count in ((2, 300), (4, 300)):
        answers = gloo_seconds(world, count)
        for name in ("clip_grad_norm_", "GradClipper"):
            base, slope = lines[name]
            predicted = base + slope * count + answers[f"{name}: all-reduces"]
            rows.append(
                {"ranks": world, "call": name, "params": count, "model": predicted, "measured": answers[name]}
            )
        rows.append({"ranks": world, "call": "torch", "params": count, "measured": answers["torch"]})
    return rows


def simulated(
    lines: dict[str, tuple[float, float]], latency: float, bandwidth: float
) -> list[dict[str, Any]]:
    rows = []
    for ranks in MODEL_RANKS:
        for params in (300, 1000, 5000):
            parts = {
                name: {
                    "host": b + s * params,
                    "travel": travel_seconds(name, ranks, params, latency, bandwidth),
                }
                for name, (b, s) in lines.items()
            }
            rows.append({"ranks": ranks, "params": params, "seconds": parts})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latency", type=float, default=10e-6, help="seconds a hop (assumed)")
    parser.add_argument("--bandwidth", type=float, default=25e9, help="bytes a second (assumed)")
    parser.add_argument("--save", action="store_true", help=f"into {RESULT.name}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    host = host_seconds(RANKS[0], sorted(FITTED + HELD_OUT))
    for ranks in RANKS[1:]:
        host += host_seconds(ranks, (300, 2000))
    lines = {}
    for name in ("torch", "clip_grad_norm_", "GradClipper"):
        at_eight = [r for r in host if r["ranks"] == 8 and r["params"] in FITTED and name in r["seconds"]]
        points = [(r["params"], r["seconds"][name]) for r in at_eight]
        lines[name] = fitted_line(points)
    record = {
        "machine": describe(),
        "assumed": {"latency": arguments.latency, "bandwidth": arguments.bandwidth},
        "host": host,
        "lines": lines,
        "held_out": HELD_OUT,
        "gloo": checked_on_gloo(lines),
        "simulated": simulated(lines, arguments.latency, arguments.bandwidth),
    }
    print(json.dumps({"lines": lines, "gloo": record["gloo"]}, indent=1))
    if arguments.save:
        RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
