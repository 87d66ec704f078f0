"""What recording costs a training step, beside what others do for the same numbers.

A small MLP of 300 and of 2,000 parameters is trained; every round makes one whole step with every
contender, in rotating order, and the part between backward() and optimizer.step() is timed by
itself. Then blocks of steps with and without recording alternate, so that what the writing thread
takes from the loop shows, too.

    python benchmarks/bench_monitor.py                    prints the table
    python benchmarks/bench_monitor.py --save NAME        writes benchmarks/results/NAME.json too
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import describe
from torch import nn

import gradkern

RESULTS = Path(__file__).with_name("results")
MAX_NORM = 1.0


class Training:
    """A model, its data and its optimizer."""

    def __init__(self, count: int, width: int, batch: int) -> None:
        torch.manual_seed(0)
        layers = [nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(count // 2)]
        self.model = nn.Sequential(*layers)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.batch = torch.randn(batch, width)
        self.params = dict(self.model.named_parameters())

    def backward(self) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model(self.batch).square().mean()
        loss.backward()
        return loss

    def step(self, between: Callable[[torch.Tensor], Any]) -> tuple[float, float]:
        """Seconds of the whole step, and of `between` alone."""
        start = time.perf_counter()
        loss = self.backward()
        before = time.perf_counter()
        between(loss)
        after = time.perf_counter()
        self.optimizer.step()
        return time.perf_counter() - start, after - before


def contenders(training: Training, monitor: gradkern.GradMonitor) -> dict[str, Callable[[torch.Tensor], Any]]:
    params = training.params
    clipper = gradkern.GradClipper(training.model, MAX_NORM)
    clip = nn.utils.clip_grad_norm_

    def grad_norm_dict(_: torch.Tensor) -> None:  # as a trainer's grad_norm utility does
        norms = {name: p.grad.norm(2) for name, p in params.items() if p.grad is not None}
        total = torch.stack(list(norms.values())).norm(2)
        {**{n: float(v) for n, v in norms.items()}, "total": float(total)}
        clip(list(params.values()), MAX_NORM)

    def item_loop(_: torch.Tensor) -> None:
        [p.grad.norm().item() for p in params.values() if p.grad is not None]
        clip(list(params.values()), MAX_NORM)

    def histograms(_: torch.Tensor) -> None:  # as a watching logger does: 64 bins of every gradient
        for p in params.values():
            flat = p.grad.detach().reshape(-1)
            low, high = flat.min().item(), flat.max().item()
            flat.histc(bins=64, min=low, max=high if high > low else low + 1).tolist()
        clip(list(params.values()), MAX_NORM)

    return {
        "gradkern clip_()": lambda _: clipper.clip_(),
        "gradkern clip_() + record()": lambda loss: monitor.record(clipper.clip_(), loss=loss),
        "torch clip": lambda _: clip(list(params.values()), MAX_NORM),
        "torch clip + norm.item() per parameter": item_loop,
        "torch clip + dict of norms": grad_norm_dict,
        "torch clip + histogram per parameter": histograms,
    }


def interleaved(training: Training, ways: dict[str, Any], rounds: int) -> dict[str, tuple[float, float]]:
    """Median seconds of the whole step and of the part between, for each contender."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds + 3):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            measured = training.step(ways[name])
            if number >= 3:
                times[name].append(measured)
    return {
        n: (statistics.median(t[0] for t in x), statistics.median(t[1] for t in x)) for n, x in times.items()
    }


def blocks(training: Training, ways: dict[str, Any], pairs: int, length: int) -> dict[str, float]:
    """Alternating blocks of steps: median seconds a step, of the clock and of all threads together."""
    ends = {"clip": ways["gradkern clip_()"], "record": ways["gradkern clip_() + record()"]}
    means: dict[str, list[tuple[float, float]]] = {"clip": [], "record": []}
    for number in range(pairs):
        for name in sorted(ends, reverse=bool(number % 2)):
            cpu = time.process_time()
            wall = statistics.fmean(training.step(ends[name])[0] for _ in range(length))
            if name == "record":  # what the writing thread still has to do belongs to these steps
                time.sleep(0.3)
            means[name].append((wall, (time.process_time() - cpu) / length))
    extra = [[r[i] - c[i] for c, r in zip(means["clip"], means["record"])] for i in (0, 1)]
    return {
        "clip_s": statistics.median(m[0] for m in means["clip"]),
        "extra_s": statistics.median(extra[0]),
        "clip_cpu_s": statistics.median(m[1] for m in means["clip"]),
        "extra_cpu_s": statistics.median(extra[1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--save", metavar="NAME")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = {"machine": describe(), "cases": {}}
    results.update(threads=arguments.threads, rounds=arguments.rounds)
    for count, width, batch in ((300, 128, 64), (2000, 48, 64)):
        training = Training(count, width, batch)
        with tempfile.TemporaryDirectory() as folder:
            with gradkern.GradMonitor(training.model, training.optimizer, folder) as monitor:
                ways = contenders(training, monitor)
                medians = interleaved(training, ways, arguments.rounds)
                alternating = blocks(training, ways, arguments.blocks, 10)
                monitor.flush()
            writing = gradkern.History.open(folder).meta["monitor"]["write_us"]
        results["cases"][str(count)] = {
            "medians_us": {n: {"step": 1e6 * s, "between": 1e6 * b} for n, (s, b) in medians.items()},
            "blocks_us": {k.replace("_s", ""): 1e6 * v for k, v in alternating.items()},
            "writer_us_per_row": writing,
        }
        show(count, results["cases"][str(count)])
    if arguments.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{arguments.save}.json").write_text(json.dumps(results, indent=1) + "\n")


def show(count: int, case: dict[str, Any]) -> None:
    base = case["medians_us"]["gradkern clip_()"]
    print(f"\n{count} parameters; a step with clip_() takes {base['step'] / 1e3:.2f} ms")
    for name, row in case["medians_us"].items():
        extra = row["between"] - base["between"]
        share = 100 * extra / base["step"]
        print(f"  {name:42} {row['between']:10.1f} µs   {extra:+10.1f} µs  {share:+7.2f} % of the step")
    extra, clip = case["blocks_us"]["extra"], case["blocks_us"]["clip"]
    share = 100 * extra / clip
    print(f"  alternating blocks: record() adds {extra:+.1f} µs to {clip / 1e3:.2f} ms ({share:+.2f} %)")
    extra, clip = case["blocks_us"]["extra_cpu"], case["blocks_us"]["clip_cpu"]
    share = 100 * extra / clip
    print(f"  the same in CPU time of all threads:   {extra:+.1f} µs to {clip / 1e3:.2f} ms ({share:+.2f} %)")
    print(f"  the writing thread takes {case['writer_us_per_row']} µs a row (wall time)")


if __name__ == "__main__":
    main()
