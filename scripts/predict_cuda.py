"""Predict the times of the CUDA kernels, and write docs/cuda-predictions.md.

    python scripts/predict_cuda.py                                writes the page
    python scripts/predict_cuda.py --measured bench_cuda.json     prints predictions and measurements

The model of a norm pass: the launches one after the other, a chain of dependent steps, and the slowest of
memory, instruction issue, the float64 and conversion pipes, and latencies that follow one another.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "cuda-predictions.md"
MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Gpu:
    """Figures of the datasheet and of NVIDIA's table of arithmetic throughput.

    `rate` is the attainable bandwidth in bytes per second. That of H200 is measured (4.31 TB/s, CUB's sum of
    2^28 integers). The others are assumed to reach the same share of their datasheet.
    """

    name: str
    multiprocessors: int
    hertz: float
    rate: float
    doubles: int  #: float64 operations per cycle and multiprocessor
    conversions: int  #: conversions between float32 and float64, per cycle and multiprocessor
    pairs: bool  #: whether squares are added in float32 instead of float64 (csrc/cuda/accumulate.h)


SHARE = 4.31 / 4.8
GPUS = (
    Gpu("H200", 132, 1.755e9, 4.31e12, 64, 16, pairs=False),
    Gpu("H100", 132, 1.755e9, 3.35e12 * SHARE, 64, 16, pairs=False),
    Gpu("A100", 108, 1.41e9, 2.039e12 * SHARE, 32, 16, pairs=False),
    Gpu("B200", 148, 1.85e9, 8.0e12 * SHARE, 64, 16, pairs=False),
    Gpu("L4", 58, 2.04e9, 0.3e12 * SHARE, 2, 2, pairs=True),
)


@dataclass(frozen=True)
class Mix:
    """Instructions per 64 bytes and lane: all of them, float64 operations, conversions."""

    all: int
    doubles: int
    conversions: int


@dataclass(frozen=True)
class Design:
    name: str
    float64: dict[str, Mix]
    pairs: dict[str, Mix]
    tensors_a_launch: int | None  #: None: any number
    finishing_launch: bool
    chunk: int | None  #: bytes that a block takes at a time; None for equal shares of units
    chain: float | None  #: seconds of dependent steps besides reading; None: those of STEPS


#: Cycles of the steps that wait for each other in this version's kernel. Estimated from latencies of about
#: 270 for a load from L2, 25 for a shuffle or a reduction over a warp and 16 for a float64 operation.
STEPS = {
    "start": 270,  #: which tensor a warp begins with
    "entry": 270,  #: that of the table
    "unit": 300,  #: its lanes' sums and maximum
    "add": 100,  #: to the sums of the warp's span
    "combine": 250,  #: up to 32 records: barrier, load, alignment of the digits, 18 reductions side by side
    "publish": 1000,  #: a block's record: fence, atomic, fence
    "records": 270,  #: all of them, each in a thread of the last block
    "total": 600,  #: digits to float64, root, coefficient, store
}

#: Counted in the machine code of sm_90 and sm_89 (LOOPS). NOW includes a quarter of UNIT_INSTRUCTIONS.
PREVIOUS = Design(
    "previous",
    {"bfloat16": Mix(234, 64, 0), "float32": Mix(66, 16, 16)},
    {"bfloat16": Mix(420, 0, 0), "float32": Mix(230, 0, 0)},
    tensors_a_launch=2042,
    finishing_launch=True,
    chunk=16384,
    chain=1.5e-6,
)
NOW = Design(
    "now",
    {"bfloat16": Mix(169, 34, 0), "float32": Mix(101, 18, 16)},
    {"bfloat16": Mix(252, 4, 1), "float32": Mix(150, 4, 1)},
    tensors_a_launch=None,
    finishing_launch=False,
    chunk=None,
    chain=None,
)

#: Instructions of main loops (scripts/check_kernels.py), and of the rest of a unit, without its four batches
#: (sm_90, counted by hand in a version with other loops).
LOOPS = {
    "sm_80": (145, 132, 60, 43, 75, 35),
    "sm_86, sm_89": (212, 211, 110, 59, 91, 43),
    "sm_90": (129, 157, 61, 44, 76, 38),
    "sm_100": (138, 158, 61, 51, 77, 41),
    "sm_103": (212, 212, 111, 79, 93, 51),
    "sm_120": (216, 216, 115, 57, 74, 45),
}
UNIT_INSTRUCTIONS = 160

FIRST_LAUNCH, NEXT_LAUNCH = 5e-6, 2.5e-6  #: a trivial kernel that reads; another one in the same stream
POLICY_SECONDS = 2e-6  #: time of the policies' kernel, a chain of dependent loads and barriers
TENSOR_SECONDS = 1.1e-6  #: latency of one small tensor for its warp: data, reduction, row
WAVE_SECONDS = 1.0e-6  #: latency of a chunk for its block, if nothing else is in flight
RESIDENT = 4, 8  #: blocks per multiprocessor, warps per block (now 2 of 16)
WARPS = 16  #: of a block now
BATCH, UNIT = 2048, 8192  #: bytes that a warp reads at a time, 64 per lane; bytes of a term of a tensor's sum

#: Name (as in benchmarks/bench_cuda.py), tensors, bytes of one, dtype.
CASES = (
    ("one tensor of 1024 bytes", 1, 1024, "bfloat16"),
    (f"one tensor of {16 * MIB} bytes", 1, 16 * MIB, "bfloat16"),
    (f"one tensor of {256 * MIB} bytes", 1, 256 * MIB, "bfloat16"),
    (f"one tensor of {256 * MIB} bytes", 1, 256 * MIB, "float32"),
    (f"one tensor of {GIB} bytes", 1, GIB, "bfloat16"),
    ("2,000 tensors of 4,096", 2000, 8192, "bfloat16"),
    ("2,000 tensors of 4,096", 2000, 16384, "float32"),
    ("10,000 tensors of 1,024", 10000, 2048, "bfloat16"),
)


#: For AGC: a model's tensors, their units (rows of weights and biases) and elements, in float32.
AGC_CASES = (("ResNet-50", 161, 27_667, 25_557_032), ("GPT-2 small", 148, 115_891, 124_439_808))
AGC_ENTRIES = 71  #: tensors of one launch of write_rows_kernel (csrc/cuda/agc.cu)
ROW_SECONDS = 0.5e-6  #: latency of a row of the table for a warp that has nothing to write


@dataclass(frozen=True)
class Prediction:
    memory: float
    issue: float
    pipes: float
    launches: int
    waves: float
    seconds: float


def chain(gpu: Gpu, tensors: int, size: int) -> float:
    """Seconds of STEPS for one norm pass. Rows are written beside them."""
    units = tensors * math.ceil(size / UNIT)
    blocks = min(math.ceil(units / WARPS), 2 * gpu.multiprocessors)
    combines = (units > 1) + (blocks > 1) + (blocks > 32)  # of warps, of blocks, of the last block's warps
    cycles = STEPS["start"] + STEPS["entry"] + STEPS["unit"] + STEPS["add"] + STEPS["total"]
    cycles += STEPS["combine"] * combines
    if blocks > 1:
        cycles += STEPS["publish"] + STEPS["records"]
    return cycles / gpu.hertz


def predict(gpu: Gpu, design: Design, tensors: int, size: int, dtype: str) -> Prediction:
    mix = (design.pairs if gpu.pairs else design.float64)[dtype]
    batches = tensors * size / BATCH
    cycles = batches / gpu.multiprocessors / gpu.hertz
    issue = cycles * mix.all / 4
    pipes = cycles * 32 * max(mix.doubles / gpu.doubles, mix.conversions / gpu.conversions)
    memory = tensors * size / gpu.rate
    launches = 1 if design.tensors_a_launch is None else math.ceil(tensors / design.tensors_a_launch)
    blocks = gpu.multiprocessors * RESIDENT[0]
    if design.chunk:
        units = tensors * max(1, math.ceil(size / design.chunk)) / launches
        waves = units / blocks
        serial = launches * max(0, math.ceil(waves) - 1) * WAVE_SECONDS if size <= design.chunk else 0.0
    else:
        waves = tensors * math.ceil(size / UNIT) / (blocks * RESIDENT[1])
        serial = max(0.0, math.ceil(tensors / (blocks * RESIDENT[1])) - 1) * TENSOR_SECONDS
    launches += design.finishing_launch
    # Serial latencies overlap with reading.
    work = max(memory, issue, pipes, serial)
    steps = chain(gpu, tensors, size) if design.chain is None else design.chain
    seconds = FIRST_LAUNCH + (launches - 1) * NEXT_LAUNCH + steps + work
    return Prediction(memory, issue, pipes, launches, waves, seconds)


def predict_agc(gpu: Gpu, tensors: int, rows: int, elements: int, clips: bool) -> tuple[int, float]:
    """Launches and seconds: units of gradients and weights are measured, then those of gradients scaled."""
    launches = math.ceil(tensors / AGC_ENTRIES) + 4
    warps = gpu.multiprocessors * RESIDENT[0] * RESIDENT[1]
    read = max(2 * 4 * elements / gpu.rate, math.ceil(2 * rows / warps) * TENSOR_SECONDS)
    write = max(2 * 4 * elements / gpu.rate if clips else 0.0, math.ceil(rows / warps) * ROW_SECONDS)
    steps = chain(gpu, 2 * rows, 4 * elements // rows) + chain(gpu, tensors, 4 * elements // tensors)
    return launches, FIRST_LAUNCH + (launches - 1) * NEXT_LAUNCH + steps + read + write


def calls(gpu: Gpu) -> list[str]:
    """Whole calls: clips, policies with one factor, AGC."""
    rows = []
    for name, tensors, size, dtype in CASES:
        norm = predict(gpu, NOW, tensors, size, dtype).seconds
        written = 2 * tensors * size / gpu.rate
        times = [norm + NEXT_LAUNCH, norm + NEXT_LAUNCH + written]
        times += [t + NEXT_LAUNCH + POLICY_SECONDS for t in times]
        rows.append(f"| {name}, {dtype} | {' | '.join(f'{t * 1e6:.1f}' for t in times)} |")
    lines = [
        f"## Clips and policies on {gpu.name} (predicted)",
        "",
        "Microseconds of a call's kernels. A policy with one factor (AutoClip, ZClip, SkipOutliers) adds a",
        "kernel of one block between measuring and scaling.",
        "",
        "| list | nothing is clipped | clipped | policy, nothing is clipped | policy, clipped |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "AGC measures every unit of gradients and weights, and scales units.",
        "",
        "| model, float32 | units | launches | nothing is clipped | all is clipped |",
        "|---|---|---|---|---|",
    ]
    for name, tensors, units, elements in AGC_CASES:
        launches, nothing = predict_agc(gpu, tensors, units, elements, clips=False)
        _, everything = predict_agc(gpu, tensors, units, elements, clips=True)
        lines.append(f"| {name} | {units:,} | {launches} | {nothing * 1e6:.0f} | {everything * 1e6:.0f} |")
    return [*lines, ""]


def table(gpu: Gpu) -> list[str]:
    lines = [
        f"## {gpu.name} (predicted)",
        "",
        "| list | dtype | floor | previous | now | memory | issue | pipes | launches | waves |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, tensors, size, dtype in CASES:
        before, now = (predict(gpu, design, tensors, size, dtype) for design in (PREVIOUS, NOW))
        floor = FIRST_LAUNCH + now.memory
        times = [floor, before.seconds, now.seconds, now.memory, now.issue, now.pipes]
        cells = [f"{t * 1e6:.1f}" for t in times]
        cells += [f"{before.launches} → {now.launches}", f"{before.waves:.1f} → {now.waves:.1f}"]
        lines.append(f"| {name} | {dtype} | {' | '.join(cells)} |")
    return [*lines, ""]


HEAD = """# CUDA kernels: predicted times

**Predicted, not measured.** `scripts/predict_cuda.py` wrote this page before any measurement.
`scripts/gpu_check.sh` prints these predictions beside measurements.

The tables show microseconds of one norm pass (`gradkern.get_total_norm`):

- *Floor*: one launch that reads the same bytes.
- *Now*: this version, with one measure kernel for any number of tensors.
- *Previous*: earlier versions, with a measure kernel for every 2,042 tensors and a finishing kernel.
- *Memory*, *issue* and *pipes*: what this version's kernel needs for reading alone, for instruction slots
  alone, and for the slower of float64 operations and conversions alone.

A clip adds one launch (2.5 µs, or less if it is launched early) and, if it clips, a read and a write of the
bytes: see the [end of the page](#clips-and-policies-on-h200-predicted). If pointers have changed since the
last call, an asynchronous copy of 8 bytes per tensor comes first; if sizes have changed, one of 16 bytes per
tensor and 4 per warp. It is not included.

Assumptions: the bandwidths, clocks and throughputs in the script (the bandwidth of H200 is measured; the
others are assumed to reach the same share of their datasheet), 5 µs for a kernel that reads, 2.5 µs for the
next one in the stream, and the instructions per 64 bytes counted in the machine code
(`scripts/check_kernels.py`).

"""


def instructions() -> list[str]:
    """The table of instructions, from which the mixes of NOW are taken."""
    lines = [
        "## Instructions per 64 bytes and lane (counted)",
        "",
        "Main loops of the measure kernel. A unit of 8 KiB has four iterations and about "
        f"{UNIT_INSTRUCTIONS} further instructions (counted in an earlier version).",
        "",
        "| code for | bfloat16 | float16 | float32 | float64 | complex64 | complex128 |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [f"| {name} | {' | '.join(map(str, counts))} |" for name, counts in LOOPS.items()]
    return [*lines, ""]


STEPS_BEFORE = """Beyond the floor these times are steps that wait for each other. Their lengths are assumed,
in cycles (those of *previous* are assumed to be 1.5 µs together):
"""
STEPS_AFTER = """
A warp reads which tensor it begins with (*start*), and the *entry* of that tensor. When it has read a *unit*,
it combines the sums of its lanes and *adds* them to those of its tensors before. A block combines the sums of
its warps, unless only one has a unit. Of several blocks each publishes a record. In the last block every
thread reads one of the *records*. Each of its warps combines 32 of them, and one warp combines the results.

The row of a warp's last tensor is not among the steps: it is written while the block publishes its record.

So one small tensor waits for five steps, and any list of more than 32 blocks for ten. A short list in the
arguments of the kernel would save the start and the entry (0.3 µs), but takes a second copy of the code. Only
a GPU can show how long the steps take.
"""

#: Microseconds of a norm pass on H200 that this version was designed to reach, by index into CASES.
GOALS = {0: "5–6", 4: "256–262", 5: "9.5–11", 7: "10–12"}


def goals() -> list[str]:
    lines = ["## Goals on H200 (predicted)", "", "| list | dtype | goal | predicted |", "|---|---|---|---|"]
    for i, goal in GOALS.items():
        name, tensors, size, dtype = CASES[i]
        lines.append(
            f"| {name} | {dtype} | {goal} | {predict(GPUS[0], NOW, tensors, size, dtype).seconds * 1e6:.1f} |"
        )
    return [
        *lines,
        "",
        STEPS_BEFORE,
        f"| {' | '.join(STEPS)} |",
        f"|{'---|' * len(STEPS)}",
        f"| {' | '.join(map(str, STEPS.values()))} |",
        STEPS_AFTER,
    ]


#: Results of benchmarks/bench_cuda_host.py on two machines.
HOSTS = ("cuda_host", "cuda_host_avx2")


def host() -> list[str]:
    """The host's share, as measured by benchmarks/bench_cuda_host.py."""
    records = [
        json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
        for name in HOSTS
    ]
    lines = [
        "## Host time (measured on a CPU with a model of the device)",
        "",
        "Nanoseconds per tensor of a call on the host, measured with a model of a CUDA device, whose kernels",
        "do nothing (`benchmarks/bench_cuda_host.py`). The driver's launches and copies are not included.",
        "",
        "- Fresh: right after `zero_grad(set_to_none=True)`, forward and backward, by which autograd made",
        "  every gradient (100 elements).",
        "- Emptied: the same, and 64 MiB of other memory written in between, more than the caches hold.",
        "- Warm: the gradients of the call before.",
        "- Floor: a walk that only reads what has to be read, on one thread, in turns with the calls.",
        "- One tensor: a whole call with a list of one, in microseconds.",
        "",
        "Medians over rounds in which all calls take turns, on two machines. The memory of the second one is",
        "several times as slow.",
        "",
    ]
    for record in records:
        lines += host_table(record)
    lines += [
        "A fresh list costs mostly cache misses: what has to be read of a parameter and its gradient lies",
        "in about nine cache lines. A call's own code and data have left the caches as well. Of the time",
        "per tensor, the walk is the floor; the call is that on one tensor, divided among all; the rest is",
        "all else that the call does for a tensor.",
        "",
    ]
    for record in records:
        lines += host_reading(record)
    return lines


def host_machine(record: dict[str, Any]) -> str:
    machine = record["machine"]
    kernels = machine["gradkern_cpu_instruction_set_in_use"].upper().replace("AVX512", "AVX-512")
    return (
        f"{machine['cpu']} with {kernels}, {machine['cores']} cores, torch {machine['torch']}, "
        f"commit {machine['commit']}."
    )


def host_table(record: dict[str, Any]) -> list[str]:
    lines = [
        host_machine(record),
        "",
        "| call | tensors | fresh | floor | goal | one tensor | emptied | floor | one tensor | warm | floor "
        "| goal | one tensor |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        cells = []
        for kind in ("fresh", "emptied", "warm"):
            cells += [f"{row['ns'][kind]:.0f}", f"{row['floor'][kind]:.0f}"]
            cells += [str(row["goals"][kind])] if kind in row["goals"] else []
            cells.append(f"{row['one'][kind] / 1e3:.0f}")
        lines.append(f"| `{row['call']}` | {row['tensors']:,} | {' | '.join(cells)} |")
    return [*lines, ""]


def host_reading(record: dict[str, Any]) -> list[str]:
    """What the time of a list consists of, and which goals are met."""
    lines = [
        host_machine(record),
        "",
        "| call | tensors | gradients | ns | walk | call | rest | goal | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        for kind, goal in row["goals"].items():
            ns, floor, call = row["ns"][kind], row["floor"][kind], row["one"][kind] / row["tensors"]
            alone = "; walk and one call exceed it" if floor + call > goal else ""
            verdict = "met" if ns <= goal else f"missed{alone}"
            cells = f"{ns:.0f} | {floor:.0f} | {call:.0f} | {ns - floor - call:.0f} | {goal} | {verdict} |"
            lines.append(f"| `{row['call']}` | {row['tensors']:,} | {kind} | {cells}")
    return [*lines, ""]


def page() -> str:
    return "\n".join(
        [
            HEAD,
            *goals(),
            *host(),
            *instructions(),
            *(line for gpu in GPUS for line in table(gpu)),
            *calls(GPUS[0]),
        ]
    )


def beside(gpu: Gpu, rows: list[dict[str, object]]) -> list[str]:
    """Predicted and measured times of the benchmark's rows that are in the tables."""
    lines = [f"{'list':34}{'dtype':10}{'predicted':>11}{'measured':>10}{'ratio':>7}"]
    for name, tensors, size, dtype in CASES:
        for row in rows:
            seconds = row["gpu_seconds"]
            if row["case"] != name or row["dtypes"] != [dtype] or row["clipping"]:
                continue
            assert isinstance(seconds, dict)
            predicted, measured = predict(gpu, NOW, tensors, size, dtype).seconds, seconds["gradkern_norm"]
            times = f"{predicted * 1e6:11.1f}{measured * 1e6:10.1f}{measured / predicted:7.2f}"
            lines.append(f"{name:34}{dtype:10}{times}")
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measured", type=Path, help="results of benchmarks/bench_cuda.py")
    arguments = parser.parse_args(argv)
    if arguments.measured:
        record = json.loads(arguments.measured.read_text())
        gpu = next((g for g in GPUS if g.name in record["machine"]["gpu"]), GPUS[0])
        print(f"µs of a norm pass; predicted for {gpu.name}, measured on {record['machine']['gpu']}")
        print(*beside(gpu, record["rows"]), sep="\n")
    else:
        PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
