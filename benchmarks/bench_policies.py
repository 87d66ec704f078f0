"""The cost of each policy compared with plain global clipping, on the CPU, interleaved in one run.

Nothing is clipped, because no policy's limit is reached: only measuring and deciding are timed. The goal is
to stay within 5 % or 30 us of plain clipping. AGC also has to read the weights: its floor is one read of
weights and gradients (`get_total_norm` of both).

Times are CPU times (`time.process_time`), on one thread by default. Other programs on the machine share its
caches, but their time is not counted. The order of the contenders is drawn anew in each round, because what
one leaves in the caches helps or harms the next.

    python benchmarks/bench_policies.py                prints the table, writes results/policies_cpu.json
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
from machine import describe, save
from torch import nn

import gradkern
from gradkern.policies import (
    AGC,
    AdaGC,
    AutoClip,
    GlobalNorm,
    PerLayerNorm,
    Schedule,
    SkipOutliers,
    Value,
    ZClip,
)

CASES = [(300, 4096), (2000, 4096)]
FAR = 1e9
PLAIN, FLOOR = "max_norm", "weights and gradients, one read"
Build = Callable[[list[tuple[str, nn.Parameter]]], gradkern.GradClipper]


def by_policy(make: Callable[[], object]) -> Build:
    return lambda named: gradkern.GradClipper(named, policy=make())


def by_groups(*policies: Callable[[], object]) -> Build:
    """As many groups as policies, one parameter after the other."""

    def build(named: list[tuple[str, nn.Parameter]]) -> gradkern.GradClipper:
        groups = {
            str(i): ([p for _, p in named[i :: len(policies)]], make()) for i, make in enumerate(policies)
        }
        return gradkern.GradClipper(named, groups=groups)

    return build


#: The most turns of a run. AutoClip's window holds the largest norm for 1,000 calls; after that, its
#: threshold would be the norm of each call itself, and every call would scale.
TURNS = 900

CONTENDERS: dict[str, Build] = {
    PLAIN: lambda named: gradkern.GradClipper(named, FAR),
    "GlobalNorm": by_policy(lambda: GlobalNorm(FAR)),
    "PerLayerNorm": by_policy(lambda: PerLayerNorm(FAR)),
    "Value": by_policy(lambda: Value(FAR)),
    "AGC": by_policy(lambda: AGC(FAR)),
    "AutoClip": by_policy(lambda: AutoClip(100.0)),
    "ZClip": by_policy(lambda: ZClip(z_thresh=FAR)),
    "AdaGC": by_policy(lambda: AdaGC(lambda_abs=FAR, lambda_rel=FAR)),
    "SkipOutliers": by_policy(lambda: SkipOutliers(FAR)),
    "Schedule": by_policy(lambda: Schedule(lambda step: FAR)),
    "2 groups, limits": by_groups(*[lambda: FAR] * 2),
    "8 groups, limits": by_groups(*[lambda: FAR] * 8),
    "2 groups, ZClip and AdaGC": by_groups(
        lambda: ZClip(z_thresh=FAR), lambda: AdaGC(lambda_abs=FAR, lambda_rel=FAR)
    ),
}


def time_case(count: int, elements: int, seconds: float) -> dict[str, float]:
    """Median CPU seconds per call, by contender."""
    torch.manual_seed(0)
    named = [
        (f"layers.{i // 2}.{i % 2}", nn.Parameter(torch.randn(elements // 64, 64))) for i in range(count)
    ]
    gradients = [[torch.randn_like(p) * scale for _, p in named] for scale in (1.0, 1.1)]
    calls = {name: build(named).clip_ for name, build in CONTENDERS.items()}
    weights = [p.detach() for _, p in named]
    calls[FLOOR] = lambda: gradkern.get_total_norm(weights + [p.grad for _, p in named if p.grad is not None])
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    end = time.perf_counter() + seconds
    turn, shuffled = 0, random.Random(0)
    while turn < TURNS and (time.perf_counter() < end or turn < 20):
        for (_, p), g in zip(named, gradients[turn % 2]):
            p.grad = g
        shuffled.shuffle(names)
        for name in names:
            start = time.process_time()
            calls[name]()
            times[name].append(time.process_time() - start)
        turn += 1
    return {name: statistics.median(own[4:]) for name, own in times.items()}


def verdict(name: str, median: dict[str, float]) -> str:
    """A time compared with its goal or its floor."""
    if name in (PLAIN, FLOOR):
        return ""
    if name == "AGC":
        return f"{median[name] / median[FLOOR]:.2f}x its floor"
    above = median[name] - median[PLAIN]
    return "goal met" if above <= max(0.05 * median[PLAIN], 30e-6) else "above the goal"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each case")
    parser.add_argument("--save", metavar="NAME", default="policies_cpu", help="benchmarks/results/NAME.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for count, elements in CASES:
        median = time_case(count, elements, arguments.seconds)
        plain = median[PLAIN]
        print(f"{count} parameters of {elements} elements: {PLAIN} {plain * 1e6:.1f} us")
        for name, took in median.items():
            print(
                f"  {name:32}{took * 1e6:9.1f} us  {(took - plain) * 1e6:+8.1f} us  {took / plain:6.2f}x"
                f"  {verdict(name, median)}"
            )
        rows.append({"parameters": count, "elements": elements, "seconds": median})
    save(arguments.save, {"machine": describe(), "threads": arguments.threads, "rows": rows})


if __name__ == "__main__":
    main()
