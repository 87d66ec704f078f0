"""A GradScaler step and the optimizer fold, compared with torch's own: bench_scaler.py [--save]

- unscale and clip: `clipper.clip_(scaler=…)` against `scaler.unscale_` followed by torch's clip. torch
  reads and writes every gradient twice, gradkern once.
- clip and step: a fused AdamW step that is handed the coefficient against a clip followed by the step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import describe
from torch import Tensor, nn
from torch.amp import GradScaler

import gradkern

RESULT = Path(__file__).parent / "results" / "scaler_cpu.json"
CASES = {
    "300 tensors of 100,000": [100_000] * 300,
    "2,000 tensors of 4,096": [4_096] * 2000,
}
MAX_NORM = {True: 1.0, False: 1e9}


class Contender:
    """Parameters with gradients, an optimizer, and one step to time."""

    def __init__(self, sizes: list[int], scaled: bool) -> None:
        self.params = [nn.Parameter(torch.randn(n)) for n in sizes]
        self.optimizer = torch.optim.AdamW(self.params, lr=1e-3, fused=True)
        self.scaler = GradScaler("cpu", init_scale=1024.0, growth_interval=10**6, enabled=scaled)
        self.scaler.scale(torch.ones(()))  # makes the scale

    def fill(self, gradients: list[Tensor]) -> None:
        for p, g in zip(self.params, gradients):
            if p.grad is None:
                p.grad = g.clone()
            else:
                p.grad.copy_(g)
        if self.scaler.is_enabled():
            self.scaler._per_optimizer_states.clear()  # as `scaler.update` does

    def torch_unscale_clip(self, max_norm: float) -> None:
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.params, max_norm)

    def torch_clip_step(self, max_norm: float) -> None:
        nn.utils.clip_grad_norm_(self.params, max_norm)
        self.optimizer.step()


def calls_of(what: str, sizes: list[int], clips: bool) -> dict[str, tuple[Contender, Callable[[], object]]]:
    max_norm, scaled = MAX_NORM[clips], what == "unscale and clip"
    theirs, ours = Contender(sizes, scaled), Contender(sizes, scaled)
    clipper = gradkern.GradClipper(ours.params, max_norm)
    if scaled:
        return {
            "torch": (theirs, lambda: theirs.torch_unscale_clip(max_norm)),
            "gradkern": (ours, lambda: clipper.clip_(scaler=ours.scaler, optimizer=ours.optimizer)),
        }
    folded = Contender(sizes, scaled)
    fold = gradkern.GradClipper(folded.params, max_norm, optimizer=folded.optimizer, fold=True)
    return {
        "torch": (theirs, lambda: theirs.torch_clip_step(max_norm)),
        "gradkern": (ours, lambda: (clipper.clip_(), ours.optimizer.step())),
        "gradkern, folded": (folded, lambda: (fold.clip_(), folded.optimizer.step())),
    }


def run(what: str, sizes: list[int], clips: bool, repeats: int) -> dict[str, float]:
    gradients = [torch.randn(n) for n in sizes]
    calls = calls_of(what, sizes, clips)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(repeats + 2):
        for name, (contender, call) in calls.items():
            contender.fill(gradients)
            begin = time.perf_counter()
            call()
            if round_ >= 2:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--save", action="store_true", help=f"into {RESULT.name}")
    arguments = parser.parse_args()
    rows = []
    for what in ("unscale and clip", "clip and step"):
        for case, sizes in CASES.items():
            for clips in (False, True):
                seconds = run(what, sizes, clips, arguments.repeats)
                rows.append({"what": what, "case": case, "clips": clips, "seconds": seconds})
                print(what, "|", case, "| clips", clips, {k: f"{1e3 * v:.2f} ms" for k, v in seconds.items()})
    if arguments.save:
        record = {"machine": describe(), "threads": torch.get_num_threads(), "rows": rows}
        RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
