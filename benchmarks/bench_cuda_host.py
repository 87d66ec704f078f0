"""Host time of clips on CUDA, without a GPU.

The device is a model (tests/support/model_gpu.py), on which kernels cost nothing. The times cover all that
the host does: Python, the walk over the gradients, the tensor table. They exclude the CUDA driver, which
needs a few microseconds for a launch or a copy, whatever the number of tensors.

- Fresh: right after a step of a training loop: `zero_grad(set_to_none=True)`, forward, backward. Autograd
  has just made every gradient, of 100 elements.
- Emptied: the same, and then 64 MiB of other memory are written, more than the caches hold.
- Warm: the same gradients as in the call before.

The floor is a walk that only reads what a clip has to read of every parameter and increments the version
counters, in C++, on one thread (`model_gpu_walk`). "One tensor" is a call on a list of one tensor: the part
that does not depend on the number of tensors. When fresh, most of it is code that the caches no longer hold.

All calls take turns in every round, each on gradients of its own step. The figures are medians over rounds.

    python benchmarks/bench_cuda_host.py            results go to benchmarks/results/cuda_host.json
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support import model_gpu

LIBRARY = model_gpu.install()

import torch  # noqa: E402
from machine import describe, save  # noqa: E402
from torch import nn  # noqa: E402

import gradkern  # noqa: E402

#: Nanoseconds per tensor, by the number of tensors.
GOALS = {2000: {"fresh": 120, "warm": 40}, 10000: {"fresh": 160, "warm": 40}}
ROUNDS = {2000: 21, 10000: 9}
KINDS = ("fresh", "emptied", "warm")
OTHER_MEMORY = torch.zeros(16 << 20)

Calls = dict[str, Callable[[], object]]
Times = dict[str, dict[str, float]]


def parameters(count: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(100, device="cuda")) for _ in range(count)]


def step(params: list[nn.Parameter]) -> None:
    """A step of a training loop, up to the clip."""
    for p in params:
        p.grad = None
    x = torch.ones(100, device="cuda")
    for p in params:
        x = x * p
    x.sum().backward()


def seconds_of(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def medians(params: list[nn.Parameter], one: list[nn.Parameter], calls: Calls) -> Times:
    """Nanoseconds of each call, by kind."""
    seconds: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in KINDS} for name in calls}
    for _ in range(ROUNDS[len(params)]):
        for name, call in calls.items():
            of = seconds[name]
            step(one)
            step(params)
            of["fresh"].append(seconds_of(call))
            of["warm"] += [seconds_of(call) for _ in range(3)]
            step(one)
            step(params)
            OTHER_MEMORY.add_(1)
            of["emptied"].append(seconds_of(call))
    return {name: {kind: 1e9 * median(of[kind]) for kind in KINDS} for name, of in seconds.items()}


def walk(params: list[nn.Parameter]) -> Callable[[], object]:
    """The floor: a function that reads what a clip has to read."""
    addresses = (ctypes.c_void_p * len(params))(*(p._cdata for p in params))
    function, count = ctypes.CDLL(None).model_gpu_walk, ctypes.c_size_t(len(params))
    return lambda: function(addresses, count)


def clips(params: list[nn.Parameter]) -> Calls:
    clipper = gradkern.GradClipper(params, 1.0)
    return {
        "clip_grad_norm_": lambda: gradkern.clip_grad_norm_(params, 1.0),
        "GradClipper.clip_": clipper.clip_,
    }


def measure(count: int) -> list[dict[str, object]]:
    params, one = parameters(count), parameters(1)
    step(one)
    step(params)
    of_one = {f"{name}, one tensor": call for name, call in clips(one).items()}
    times = medians(params, one, {"floor": walk(params), **clips(params), **of_one})
    floor = {kind: ns / count for kind, ns in times.pop("floor").items()}
    return [
        {
            "call": name,
            "tensors": count,
            "ns": {kind: ns / count for kind, ns in times[name].items()},
            "goals": GOALS[count],
            "floor": floor,
            "one": times[f"{name}, one tensor"],
        }
        for name in ("clip_grad_norm_", "GradClipper.clip_")
    ]


def text_of(row: dict[str, object]) -> str:
    ns, floor, one, goals = (row[key] for key in ("ns", "floor", "one", "goals"))
    assert isinstance(ns, dict) and isinstance(floor, dict) and isinstance(one, dict)
    assert isinstance(goals, dict)
    parts = [
        f"{kind} {ns[kind]:.0f} ns (goal {goals.get(kind, '-')}, floor {floor[kind]:.0f}, "
        f"of one tensor {one[kind] / 1e3:.0f} µs)"
        for kind in KINDS
    ]
    return f"{row['call']:18} {row['tensors']:6} tensors, a tensor: {', '.join(parts)}"


def main() -> None:
    LIBRARY.model_gpu_skip_kernels(1)
    rows = []
    for count in GOALS:
        for row in measure(count):
            print(text_of(row), flush=True)
            rows.append(row)
    threads = torch.get_num_threads()
    save("cuda_host", {"machine": describe(), "threads": threads, "rounds": ROUNDS, "rows": rows})


if __name__ == "__main__":
    main()
