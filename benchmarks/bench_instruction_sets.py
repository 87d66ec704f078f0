"""Clipping with each set of CPU kernels that this processor can run: AVX-512, AVX2, and those for older ones.

A process keeps the kernels that it begins with (GRADKERN_CPU_ISA), so each set runs in a process of its own.
The processes take turns; the table shows the median of the rounds.

    python benchmarks/bench_instruction_sets.py    prints the table, writes results/instruction_sets_cpu.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from typing import Any

import torch
from machine import describe, save

import gradkern
from gradkern.bench.cases import CASES
from gradkern.bench.clip import Contenders, GradientCopies, interleaved
from gradkern.bench.shapes import case_shapes

SHOWN = ("MLP, 6", "2,000 tensors")  # within a core's cache, and beyond
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NEWEST_FIRST = ("avx512", "avx2", "baseline")


def usable() -> list[str]:
    """The sets that this processor can run, the best first."""
    build = gradkern.build_info()
    compiled = str(build["cpu_instruction_sets"]).split()
    best = NEWEST_FIRST.index(str(build["cpu_instruction_set_in_use"]))
    return [name for name in NEWEST_FIRST[best:] if name in compiled]


def contenders(copies: GradientCopies) -> Contenders:
    clip, clip_value = gradkern.clip_grad_norm_, gradkern.clip_grad_value_
    lists, limits = copies.lists, copies.limits
    return {
        "clip_grad_norm_, not clipping": lambda i: clip(lists[i], 1e9),
        "clip_grad_norm_, clipping": lambda i: clip(lists[i], next(limits)),
        "clip_grad_value_, nothing to limit": lambda i: clip_value(lists[i], 1e4),
    }


def measure(seconds: float) -> list[dict[str, Any]]:
    """This process's time of every call."""
    rows = []
    cases = [case for case in CASES if case.name.startswith(SHOWN)]
    for case, dtype in itertools.product(cases, DTYPES):
        copies = GradientCopies(case_shapes(case, dtype), clipping=True)
        # Limits fall from call to call; after more rounds, float16 would lose its gradients.
        times = interleaved(contenders(copies), copies.count, seconds, most_rounds=100)
        name = str(dtype).removeprefix("torch.")
        rows += [{"case": case.name, "dtype": name, "call": c, "seconds": t.median} for c, t in times.items()]
    return rows


def in_process(instruction_set: str, threads: int, seconds: float) -> list[dict[str, Any]]:
    environment = {**os.environ, "GRADKERN_CPU_ISA": instruction_set}
    command = [sys.executable, __file__, "--child", f"--threads={threads}", f"--seconds={seconds}"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.5, help="for each list of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        return print(json.dumps(measure(arguments.seconds)))
    runs: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in usable()}
    for _ in range(arguments.rounds):
        for name, rounds in runs.items():
            rounds.append(in_process(name, arguments.threads, arguments.seconds))
    rows = []
    for i, first in enumerate(next(iter(runs.values()))[0]):
        seconds = {name: statistics.median(r[i]["seconds"] for r in rounds) for name, rounds in runs.items()}
        rows.append({**first, "seconds": seconds})
        times = "".join(f"{name} {value * 1e6:10.1f}us  " for name, value in seconds.items())
        print(f"{first['case']:32}{first['dtype']:9}{first['call']:36}{times}")
    record = {"threads": arguments.threads, "rounds": arguments.rounds, "rows": rows}
    save("instruction_sets_cpu", {"machine": describe(), **record})


if __name__ == "__main__":
    main()
