"""The cost of recording in a training step, compared with other ways to get the same numbers.

A residual MLP of 300 and of 2,000 parameters is trained, one copy for each contender. Every round makes one
whole step with every contender, in rotating order, and times the step and the part between backward() and
optimizer.step(). Then blocks of steps with and without recording alternate. Their means include the time that
the writing thread takes from the loop and work that is not done at every step. wandb.watch (offline) and
Lightning's grad_norm are the real ones; they are left out if not installed.

    python benchmarks/bench_monitor.py                    prints the table
    python benchmarks/bench_monitor.py --save NAME        writes benchmarks/results/NAME.json too
    python benchmarks/bench_monitor.py --only history     how fast rows are taken, a long run's opening
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from long_run import measure_history
from machine import describe, save
from torch import nn

import gradkern

MAX_NORM = 1.0
CLIP, RECORD, TORCH = "gradkern clip_()", "gradkern clip_() + record()", "torch clip"
#: (parameters, width of a layer, rows of a batch)
SIZES = ((300, 128, 64), (2000, 48, 64))

Between = Callable[[torch.Tensor], Any]


class Block(nn.Module):
    """x + tanh(Wx + b) / √depth: gradients of one magnitude at every depth.

    Without the sum they vanish into subnormal numbers, on which a step takes many times its time.
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.gain = depth**-0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.gain * torch.tanh(self.linear(x))


class Training:
    """A model, its data and its optimizer."""

    def __init__(self, count: int, width: int, batch: int) -> None:
        torch.manual_seed(0)
        depth = count // 2
        self.model = nn.Sequential(*(Block(width, depth) for _ in range(depth)))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.batch = torch.randn(batch, width)
        self.params = dict(self.model.named_parameters())
        self.between: Between = lambda _: None

    def backward(self) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model(self.batch).square().mean()
        loss.backward()
        return loss

    def step(self) -> tuple[float, float]:
        """Seconds of the whole step, and of `between` alone."""
        start = time.perf_counter()
        loss = self.backward()
        before = time.perf_counter()
        self.between(loss)
        after = time.perf_counter()
        self.optimizer.step()
        return time.perf_counter() - start, after - before

    def torch_clip(self) -> torch.Tensor:
        return nn.utils.clip_grad_norm_(list(self.params.values()), MAX_NORM)


@contextmanager
def contenders(size: tuple[int, int, int], folder: Path) -> Iterator[dict[str, Training]]:
    """A training for each contender, ready to step."""
    with ExitStack() as stack:
        ways = {name: Training(*size) for name in (CLIP, RECORD, TORCH)}
        for name in (CLIP, RECORD):
            clipper = gradkern.GradClipper(ways[name].model, MAX_NORM)
            ways[name].between = lambda _, clipper=clipper: clipper.clip_()
        watched = ways[RECORD]
        monitor = stack.enter_context(gradkern.GradMonitor(watched.model, watched.optimizer, folder / "run"))
        recorder_clipper = gradkern.GradClipper(watched.model, MAX_NORM)
        watched.between = lambda loss: monitor.record(recorder_clipper.clip_(), loss=loss)
        ways[TORCH].between = lambda _: ways[TORCH].torch_clip()
        for add in (_item_loop, _lightning, _wandb):
            add(ways, size, folder, stack)
        yield ways
        monitor.flush()


def _item_loop(ways: dict[str, Training], size: tuple[int, int, int], folder: Path, stack: ExitStack) -> None:
    training = Training(*size)

    def between(_: torch.Tensor) -> None:
        [p.grad.norm().item() for p in training.params.values() if p.grad is not None]
        training.torch_clip()

    training.between = between
    ways["torch clip + norm().item() per parameter"] = training


def _lightning(ways: dict[str, Training], size: tuple[int, int, int], folder: Path, stack: ExitStack) -> None:
    try:
        import lightning
        from lightning.pytorch.utilities import grad_norm
    except ImportError as error:
        print(f"left out: {error}", file=sys.stderr)
        return
    training = Training(*size)

    def between(_: torch.Tensor) -> None:  # a logger needs the numbers
        [float(value) for value in grad_norm(training.model, norm_type=2).values()]
        training.torch_clip()

    training.between = between
    ways[f"torch clip + Lightning {lightning.__version__} grad_norm, as numbers"] = training


def _wandb(ways: dict[str, Training], size: tuple[int, int, int], folder: Path, stack: ExitStack) -> None:
    try:
        import wandb
    except ImportError as error:
        print(f"left out: {error}", file=sys.stderr)
        return
    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true")
    training = Training(*size)
    run = wandb.init(dir=str(folder), project="bench")
    stack.callback(run.finish)
    run.watch(training.model, log="gradients", log_freq=1)  # hooks that work in backward()

    def between(loss: torch.Tensor) -> None:
        training.torch_clip()
        run.log({"loss": loss.item()})

    training.between = between
    ways[f"torch clip + wandb {wandb.__version__} watch(log_freq=1), log"] = training


def interleaved(ways: dict[str, Training], rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds of the whole step and of the part between, for each contender: median, quartiles."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds + 3):
        at = number % len(names)
        for name in names[at:] + names[:at]:
            measured = ways[name].step()
            if number >= 3:
                times[name].append(measured)
    found = {}
    for name, pairs in times.items():
        steps, betweens = ([1e6 * pair[i] for pair in pairs] for i in (0, 1))
        low, middle, high = statistics.quantiles(steps, n=4)
        found[name] = {
            "step": middle,
            "step_q1": low,
            "step_q3": high,
            "between": statistics.median(betweens),
        }
    return found


def blocks(ways: dict[str, Training], pairs: int, length: int) -> dict[str, float]:
    """Alternating blocks of steps: µs per step in the median block, wall time and CPU time of all threads."""
    spent: dict[str, list[tuple[float, float]]] = {CLIP: [], RECORD: []}
    for number in range(pairs):
        for name in sorted(spent, reverse=bool(number % 2)):
            cpu = time.process_time()
            wall = statistics.fmean(ways[name].step()[0] for _ in range(length))
            time.sleep(0.3)  # what the writing thread still has to do belongs to these steps
            spent[name].append((1e6 * wall, 1e6 * (time.process_time() - cpu) / length))
    extra = [[r[i] - c[i] for c, r in zip(spent[CLIP], spent[RECORD])] for i in (0, 1)]
    return {
        "clip": statistics.median(m[0] for m in spent[CLIP]),
        "extra": statistics.median(extra[0]),
        "extra_q1": statistics.quantiles(extra[0], n=4)[0],
        "extra_q3": statistics.quantiles(extra[0], n=4)[2],
        "clip_cpu": statistics.median(m[1] for m in spent[CLIP]),
        "extra_cpu": statistics.median(extra[1]),
    }


def measure_steps(arguments: argparse.Namespace) -> dict[str, Any]:
    cases: dict[str, Any] = {}
    for size in SIZES:
        with tempfile.TemporaryDirectory() as name, contenders(size, Path(name)) as ways:
            case = {"us": interleaved(ways, arguments.rounds)}
            case["blocks_us"] = blocks(ways, arguments.blocks, 10)
            cases[str(size[0])] = case
            show(size[0], case)
    return cases


def show(count: int, case: dict[str, Any]) -> None:
    base = case["us"][CLIP]
    print(f"\n{count} parameters; a step with clip_() takes {base['step'] / 1e3:.2f} ms (median)")
    for name, row in case["us"].items():
        between, step = row["between"] - base["between"], row["step"] - base["step"]
        share = 100 * between / base["step"]
        print(
            f"  {name:58} between {row['between']:9.1f} µs ({between:+10.1f} µs, {share:+6.2f} % of a step)"
            f"   whole step {row['step'] / 1e3:8.2f} ms ({step / 1e3:+8.2f})"
        )
    b = case["blocks_us"]
    print(
        f"  alternating blocks: record() adds {b['extra']:+.1f} µs (quartiles {b['extra_q1']:+.0f}, "
        f"{b['extra_q3']:+.0f}) to {b['clip'] / 1e3:.2f} ms ({100 * b['extra'] / b['clip']:+.2f} %)"
    )
    share = 100 * b["extra_cpu"] / b["clip_cpu"]
    print(f"  in CPU time of all threads: {b['extra_cpu']:+.1f} µs ({share:+.2f} %)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--save", metavar="NAME")
    parser.add_argument("--only", choices=("steps", "history"))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rows", type=int, default=100_000, help="of the long run")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = {"machine": describe(), "threads": arguments.threads}
    results["load"] = os.getloadavg()[0]
    if arguments.only != "history":
        results.update(rounds=arguments.rounds, blocks=arguments.blocks, cases=measure_steps(arguments))
    if arguments.only != "steps":
        results["history"] = measure_history(arguments.rows)
    if arguments.save:
        save(arguments.save, results)


if __name__ == "__main__":
    main()
