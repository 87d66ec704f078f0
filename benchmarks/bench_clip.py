"""clip_grad_norm_ on the CPU: gradkern, torch, and the memory floor, interleaved in one run.

Every round measures every contender once, in rotating order, each on the next of several copies of
the gradients (together larger than the last-level cache, so that every call reads memory). Reported
are medians. When nothing is to be clipped the floor is one read; when clipping, one read and one
read-and-write.

    python benchmarks/bench_clip.py                prints the table, writes benchmarks/results/cpu.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from floor import floor
from machine import describe
from models import CASES, Case, parameters

import gradkern

ROTATED_BYTES = 128 << 20  # beyond any last-level cache
RESULTS = Path(__file__).with_name("results")


def measure_case(case: Case, dtype: torch.dtype, clipping: bool, seconds: float) -> dict[str, object]:
    shapes = case.shapes()
    numel = sum(torch.Size(s).numel() for s in shapes)
    copies = max(2, min(16, 1 + ROTATED_BYTES // (numel * dtype.itemsize)))
    lists = [parameters(shapes, dtype, seed) for seed in range(copies)]
    # A tiny positive max_norm would drive gradients to zero over the rounds and denormals are slow;
    # a coefficient of just under 1 does the same work and keeps them where they are.
    max_norm = 0.999 * float(gradkern.get_total_norm([p.grad for p in lists[0]])) if clipping else 1e9
    floors = [floor([p.grad for p in params], clipping) for params in lists]
    contenders: dict[str, Callable[[int], object]] = {
        "gradkern": lambda i: gradkern.clip_grad_norm_(lists[i], max_norm),
        "torch": lambda i: torch.nn.utils.clip_grad_norm_(lists[i], max_norm),
        "torch_single": lambda i: torch.nn.utils.clip_grad_norm_(lists[i], max_norm, foreach=False),
        "measure": lambda i: gradkern.measure(lists[i]),
        "floor": lambda i: floors[i](),
    }
    times = run_interleaved(contenders, copies, seconds, lambda i: restore(lists[i], max_norm, clipping))
    medians = {name: statistics.median(t) for name, t in times.items()}
    return {
        "case": case.name,
        "dtype": str(dtype).removeprefix("torch."),
        "clipping": clipping,
        "bytes": numel * dtype.itemsize,
        "rounds": len(times["torch"]),
        "seconds": medians,
        "quartiles": {name: statistics.quantiles(t, n=4) for name, t in times.items()},
    }


def restore(params: list[torch.nn.Parameter], max_norm: float, clipping: bool) -> None:
    """Bring the norm back above max_norm, untimed, so that every call has something to clip."""
    if clipping:
        norm = float(gradkern.get_total_norm([p.grad for p in params]))
        if norm <= 1.0005 * max_norm:
            torch._foreach_mul_([p.grad for p in params], 1.004 * max_norm / norm)


def run_interleaved(
    contenders: dict[str, Callable[[int], object]],
    copies: int,
    seconds: float,
    before: Callable[[int], None],
) -> dict[str, list[float]]:
    """Seconds of every call; at least 5 rounds after a warm-up, then until the time is used."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    copy = itertools.cycle(range(copies))
    for name in names:
        contenders[name](next(copy))
    deadline = time.perf_counter() + seconds
    for round_ in itertools.count():
        if round_ >= 5 and time.perf_counter() > deadline:
            return times
        shift = round_ % len(names)
        for name in names[shift:] + names[:shift]:
            i = next(copy)
            before(i)
            start = time.perf_counter()
            contenders[name](i)
            times[name].append(time.perf_counter() - start)
    return times


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
    RESULTS.mkdir(exist_ok=True)
    record = {"machine": describe(), "threads": arguments.threads, "rows": rows}
    path = RESULTS / f"{arguments.save}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
