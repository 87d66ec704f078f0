"""clip_grad_value_ on the CPU: gradkern, torch, and a bare read of the same bytes, interleaved in one run.

Where elements are limited, the limit shrinks by 3 % from call to call, so that every call finds elements
beyond it. One call in 100 also restores the gradients; the figures are medians, which it does not affect.

    python benchmarks/bench_value.py               prints the table, writes benchmarks/results/value_cpu.json
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator

import torch
from floor import floor
from machine import describe, save

import gradkern
from gradkern.bench.cases import CASES, Case
from gradkern.bench.clip import Contenders, GradientCopies, interleaved
from gradkern.bench.shapes import case_shapes

SHOWN = ("MLP, 6", "2,000 tensors", "GPT-2 small")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def limits(copies: GradientCopies, limiting: bool) -> Iterator[float]:
    if not limiting:
        yield from itertools.repeat(1e4)
    grads = [grad for i in range(copies.count) for grad in copies.grads(i)]
    before = [grad.clone() for grad in grads]
    while True:
        torch._foreach_copy_(grads, before)
        yield from (2 * 0.97**call for call in range(100))


def contenders(copies: GradientCopies, limiting: bool) -> Contenders:
    limit = limits(copies, limiting)
    floors = [floor(copies.grads(i), limiting) for i in range(copies.count)]
    return {
        "gradkern": lambda i: gradkern.clip_grad_value_(copies.lists[i], next(limit)),
        "torch": lambda i: torch.nn.utils.clip_grad_value_(copies.lists[i], next(limit)),
        "floor": lambda i: floors[i](),
    }


def measure_case(case: Case, dtype: torch.dtype, limiting: bool, seconds: float) -> dict[str, object]:
    copies = GradientCopies(case_shapes(case, dtype), clipping=False)
    times = interleaved(contenders(copies, limiting), copies.count, seconds)
    return {
        "case": case.name,
        "dtype": str(dtype).removeprefix("torch."),
        "limiting": limiting,
        "bytes": copies.bytes,
        "seconds": {who: taken.median for who, taken in times.items()},
        "quartiles": {who: taken.quartiles for who, taken in times.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=2.0, help="for each line of the table")
    parser.add_argument("--save", metavar="NAME", default="value_cpu", help="benchmarks/results/NAME.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    cases = [case for case in CASES if case.name.startswith(SHOWN)]
    for case, dtype, limiting in itertools.product(cases, DTYPES, (False, True)):
        row = measure_case(case, dtype, limiting, arguments.seconds)
        rows.append(row)
        s = row["seconds"]
        print(
            f"{case.name:42}{row['dtype']:9}{'limits' if limiting else '':7}"
            f"{s['gradkern'] * 1e6:10.1f}us{s['torch'] * 1e6:10.1f}us"
            f"{s['torch'] / s['gradkern']:8.2f}x{s['gradkern'] / s['floor']:8.2f}x",
            flush=True,
        )
    save(arguments.save, {"machine": describe(), "threads": arguments.threads, "rows": rows})


if __name__ == "__main__":
    main()
