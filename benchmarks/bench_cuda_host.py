"""Host time of clips on CUDA, without a GPU.

The device is a model (tests/support/model_gpu.py), on which kernels cost nothing. The times cover all that
the host does: Python, the walk over the gradients, the tensor table. They exclude the CUDA driver, which
needs a few microseconds for a launch or a copy, whatever the number of tensors.

Fresh: every gradient is new, as after `zero_grad(set_to_none=True)`, and the caches hold other memory, as
after a backward. Warm: the same gradients as in the call before. The figures are those of the fastest call.

The floor is a walk that only reads what a clip has to read of every parameter and increments the version
counters, in C++, on one thread (`model_gpu_walk`). "One tensor" is a call on a list of one tensor: the part
that does not depend on the number of tensors. When fresh, most of it is code that the caches no longer hold.

    python benchmarks/bench_cuda_host.py            results go to benchmarks/results/cuda_host.json
"""

from __future__ import annotations

import ctypes
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support import model_gpu

LIBRARY = model_gpu.install()

import torch  # noqa: E402
from machine import describe, save  # noqa: E402
from torch import nn  # noqa: E402

import gradkern  # noqa: E402

#: Nanoseconds per tensor, by the number of tensors.
GOALS = {2000: {"fresh": 120, "warm": 40}, 10000: {"fresh": 160, "warm": 40}}
ROUNDS = 25
OTHER_MEMORY = torch.zeros(16 << 20)  # 64 MiB: more than the caches


def parameters(count: int) -> list[nn.Parameter]:
    params = [nn.Parameter(torch.zeros(100, device="cuda")) for _ in range(count)]
    renew(params)
    return params


def renew(params: list[nn.Parameter]) -> None:
    for p in params:
        p.grad = None
    for p in params:
        p.grad = torch.empty(100, device="cuda")


def seconds_of(call: Any) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def fastest(params: list[nn.Parameter], call: Any) -> dict[str, float]:
    """Nanoseconds per tensor in the fastest call."""
    fresh, warm = [], []
    for _ in range(ROUNDS):
        renew(params)
        OTHER_MEMORY.add_(1)
        fresh.append(seconds_of(call))
        warm += [seconds_of(call) for _ in range(3)]
    return {"fresh": 1e9 * min(fresh) / len(params), "warm": 1e9 * min(warm) / len(params)}


def walk(params: list[nn.Parameter]) -> Any:
    """The floor: a function that reads what a clip has to read."""
    addresses = (ctypes.c_void_p * len(params))(*(p._cdata for p in params))
    function, count = ctypes.CDLL(None).model_gpu_walk, ctypes.c_size_t(len(params))
    return lambda: function(addresses, count)


def measure(params: list[nn.Parameter]) -> dict[str, dict[str, float]]:
    """The times of each call and of the floor."""
    clipper = gradkern.GradClipper(params, 1.0)
    calls = {
        "floor": walk(params),
        "clip_grad_norm_": lambda: gradkern.clip_grad_norm_(params, 1.0),
        "GradClipper.clip_": clipper.clip_,
    }
    return {name: fastest(params, call) for name, call in calls.items()}


def main() -> None:
    LIBRARY.model_gpu_skip_kernels(1)
    one = measure(parameters(1))
    rows = []
    for count, goals in GOALS.items():
        times = measure(parameters(count))
        floor = times.pop("floor")
        for name, ns in times.items():
            row = {"call": name, "tensors": count, "ns": ns, "goals": goals, "floor": floor, "one": one[name]}
            rows.append(row)
            text = ", ".join(
                f"{kind} {ns[kind]:.0f} ns (goal {goals[kind]}, floor {floor[kind]:.0f}, "
                f"of one tensor {one[name][kind] / 1e3:.0f} µs)"
                for kind in ns
            )
            print(f"{name:18} {count:6} tensors, a tensor: {text}", flush=True)
    threads = torch.get_num_threads()
    save("cuda_host", {"machine": describe(), "threads": threads, "rounds": ROUNDS, "rows": rows})


if __name__ == "__main__":
    main()
