"""clip_grad_norm_ on the CPU: gradkern, torch, and the memory floor, interleaved in one run.

Times the same calls as `gradkern bench` (gradkern/bench/) on more lists of gradients, and compares them with
two floors. "floor" is a bare read of the same bytes on the same threads; when clipping, a read and then a
read-and-write. "walk" first reads what leads from the list to the gradients, too (parameters, tensors,
storages).

The table shows medians and the goal for the ratio. "at floor" is the ratio that a call as fast as the floor
would reach on this machine. "!" marks a missed goal, "^" a missed goal that lies beyond the floor.

    python benchmarks/bench_clip.py                prints the table, writes benchmarks/results/cpu.json
    python benchmarks/bench_clip.py --sweep        random lists against torch, writes results/sweep_cpu.json
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import sweep
import torch
from floor import floor, metadata
from machine import describe, save

from gradkern.bench.cases import CASES, Case
from gradkern.bench.clip import Contenders, GradientCopies, time_clipping
from gradkern.bench.shapes import case_shapes

#: Goals for torch's time divided by gradkern's: (not clipping, clipping). Many small tensors cost torch
#: microseconds each. Large ones are bound by memory: torch reads and writes where gradkern reads once.
GOALS = {
    ("8,000 tensors of 100", "float32"): (30, 18),
    ("8,000 tensors of 100", "bfloat16"): (30, 18),
    ("10,000 tensors of 256", "float32"): (25, 15),
    ("10,000 tensors of 256", "bfloat16"): (25, 15),
    ("2,000 tensors of 4,096", "float32"): (10, 5),
    ("2,000 tensors of 4,096", "bfloat16"): (10, 5),
    ("one tensor of 2^28", "float32"): (3, 1.0),
    ("one tensor of 2^28", "bfloat16"): (4.5, 1.6),
}
OTHERS = (0.95, 0.95)


def goal_of(case: str, dtype: str, clipping: bool) -> float:
    return GOALS.get((case, dtype), OTHERS)[clipping]


def measure_case(case: Case, dtype: torch.dtype, clipping: bool, seconds: float) -> dict[str, Any]:
    def with_floor(copies: GradientCopies) -> Contenders:
        floors = [floor(copies.grads(i), clipping) for i in range(copies.count)]
        walks = [floor(copies.grads(i), clipping, metadata(copies.lists[i])) for i in range(copies.count)]
        return {"floor": lambda i: floors[i](), "walk": lambda i: walks[i]()}

    result = time_clipping(case.name, case_shapes(case, dtype), clipping, seconds=seconds, more=with_floor)
    name = str(dtype).removeprefix("torch.")
    return {**result.as_dict(), "dtype": name, "goal": goal_of(case.name, name, clipping)}


def line(row: dict[str, Any]) -> str:
    """A row of the printed table."""
    s = row["seconds"]
    times = (s["gradkern"], s["torch"], s["torch_single"], s["measure"])
    ratio, at_floor, goal = s["torch"] / s["gradkern"], s["torch"] / s["floor"], row["goal"]
    mark = " " if ratio >= goal else "!" if at_floor >= goal else "^"
    return (
        f"{row['case']:42}{row['dtype']:9}{'yes' if row['clipping'] else 'no':5}"
        + "".join(f"{t * 1e6:10.1f}us" for t in times)
        + f"{ratio:9.2f}x{goal:8.2f}x{mark}{at_floor:8.2f}x"
        + f"{s['gradkern'] / s['floor']:9.2f}x{s['gradkern'] / s['walk']:8.2f}x"
    )


def run_sweep(shapes: int, seed: int) -> None:
    rows = []
    for row in sweep.sweep(shapes, seed):
        rows.append(row)
        print(sweep.line(row), flush=True)
        # Saved after every list, so that an interrupted run keeps its rows.
        save("sweep_cpu", {"machine": describe(), "shapes": shapes, "seed": seed, "rows": rows})
    below = [row for row in rows if row["ratio"] < sweep.GOAL]
    print(
        f"{len(rows)} lines, {len(below)} below {sweep.GOAL}; least {min(row['ratio'] for row in rows):.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=2.0, help="for each line of the table")
    parser.add_argument("--save", metavar="NAME", default="cpu", help="benchmarks/results/NAME.json")
    parser.add_argument("--sweep", action="store_true", help="random lists instead of the table")
    parser.add_argument("--shapes", type=int, default=30, help="of the sweep")
    parser.add_argument("--seed", type=int, default=0, help="of the sweep")
    arguments = parser.parse_args()
    if arguments.sweep:
        return run_sweep(arguments.shapes, arguments.seed)
    torch.set_num_threads(arguments.threads)
    rows = []
    head = ("gradkern", "torch", "single", "measure")
    print(
        f"{'case':42}{'dtype':9}{'clip':5}"
        + "".join(f"{h:>12}" for h in head)
        + "  torch/gk     goal  at floor  gk/floor gk/walk"
    )
    for case, dtype, clipping in itertools.product(CASES, (torch.float32, torch.bfloat16), (False, True)):
        row = measure_case(case, dtype, clipping, arguments.seconds)
        rows.append(row)
        print(line(row), flush=True)
    save(arguments.save, {"machine": describe(), "threads": arguments.threads, "rows": rows})


if __name__ == "__main__":
    main()
