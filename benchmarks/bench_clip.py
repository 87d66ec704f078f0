"""clip_grad_norm_ on the CPU: gradkern, torch, and the memory floor, interleaved in one run.

What `gradkern bench` does (gradkern/bench/), over more lists of gradients, beside the floor: a bare read of
the same bytes on the same threads; when clipping, a read, then a read-and-write. Reported are medians.

    python benchmarks/bench_clip.py                prints the table, writes benchmarks/results/cpu.json
"""

from __future__ import annotations

import argparse
import itertools

import torch
from floor import floor
from machine import describe, save

from gradkern.bench.cases import CASES, Case
from gradkern.bench.clip import Contenders, GradientCopies, time_clipping
from gradkern.bench.layouts import case_layout


def measure_case(case: Case, dtype: torch.dtype, clipping: bool, seconds: float) -> dict[str, object]:
    def with_floor(copies: GradientCopies) -> Contenders:
        floors = [floor(copies.grads(i), clipping) for i in range(copies.count)]
        return {"floor": lambda i: floors[i]()}

    result = time_clipping(case.name, case_layout(case, dtype), clipping, seconds=seconds, more=with_floor)
    return {**result.as_dict(), "dtype": str(dtype).removeprefix("torch.")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=2.0, help="for each line of the table")
    parser.add_argument("--save", metavar="NAME", default="cpu", help="benchmarks/results/NAME.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    head = ("gradkern", "torch", "single", "measure")
    print(f"{'case':42}{'dtype':9}{'clip':5}" + "".join(f"{h:>12}" for h in head) + "  torch/gk  gk/floor")
    for case, dtype, clipping in itertools.product(CASES, (torch.float32, torch.bfloat16), (False, True)):
        row = measure_case(case, dtype, clipping, arguments.seconds)
        rows.append(row)
        s = row["seconds"]
        times = (s["gradkern"], s["torch"], s["torch_single"], s["measure"])
        print(
            f"{row['case']:42}{row['dtype']:9}{'yes' if clipping else 'no':5}"
            + "".join(f"{t * 1e6:10.1f}us" for t in times)
            + f"{s['torch'] / s['gradkern']:9.2f}x{s['gradkern'] / s['floor']:9.2f}x",
            flush=True,
        )
    save(arguments.save, {"machine": describe(), "threads": arguments.threads, "rows": rows})


if __name__ == "__main__":
    main()
