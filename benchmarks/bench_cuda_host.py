"""Host time of clips on CUDA, without a GPU.

The device is a model (tests/support/model_gpu.py), on which kernels cost nothing. Measured is all that the
host does: Python, the walk over the gradients, the tensor table. The CUDA driver is not included: a launch or
a copy takes it a few microseconds, whatever the number of tensors.

Fresh: every gradient is new, as after `zero_grad(set_to_none=True)`, and the caches hold other memory, as
after a backward. Warm: the same gradients as in the call before.

    python benchmarks/bench_cuda_host.py            results go to benchmarks/results/cuda_host.json
"""

from __future__ import annotations

import statistics
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

#: Nanoseconds a tensor; by the number of tensors.
GOALS = {2000: {"fresh": 120, "warm": 40}, 10000: {"fresh": 160, "warm": 40}}
ROUNDS = 15
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


def nanoseconds(params: list[nn.Parameter], call: Any) -> dict[str, float]:
    fresh, warm = [], []
    for _ in range(ROUNDS):
        renew(params)
        OTHER_MEMORY.add_(1)
        fresh.append(seconds_of(call))
        warm.append(min(seconds_of(call) for _ in range(3)))
    return {name: 1e9 * statistics.median(t) / len(params) for name, t in (("fresh", fresh), ("warm", warm))}


def main() -> None:
    LIBRARY.model_gpu_skip_kernels(1)
    rows = []
    for count, goals in GOALS.items():
        params = parameters(count)
        clipper = gradkern.GradClipper(params, 1.0)
        calls = {
            "clip_grad_norm_": lambda params=params: gradkern.clip_grad_norm_(params, 1.0),
            "GradClipper.clip_": clipper.clip_,
        }
        for name, call in calls.items():
            call()
            times = nanoseconds(params, call)
            rows.append({"call": name, "tensors": count, "ns": times, "goals": goals})
            text = ", ".join(f"{kind} {times[kind]:.0f} ns (goal {goals[kind]})" for kind in times)
            print(f"{name:18} {count:6} tensors, a tensor: {text}")
    save("cuda_host", {"machine": describe(), "rounds": ROUNDS, "rows": rows})


if __name__ == "__main__":
    main()
