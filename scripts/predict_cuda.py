"""Predicts what the CUDA kernels take on GPUs that were not at hand: writes docs/cuda-predictions.md.

    python scripts/predict_cuda.py                                   the table, as committed
    python scripts/predict_cuda.py --measured bench_cuda.json        beside it what a GPU took (printed)

The model of a norm pass: launches one after the other, then the slowest of memory, instruction issue, the
float64 pipe and the conversion pipe, a last wave that is not full, and the latencies on the way of the last
block.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "cuda-predictions.md"
MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Gpu:
    """Datasheet figures and NVIDIA's table of arithmetic throughput.

    `rate`: bytes a second that a copy reaches. H200's is measured (4.31 TB/s, CUB's sum of 2^28 integers);
    the others take the same share of their datasheet.
    """

    name: str
    multiprocessors: int
    hertz: float
    rate: float
    doubles: int  #: float64 operations a cycle and multiprocessor
    conversions: int  #: conversions between float32 and float64, likewise
    pairs: bool  #: adds squares up in float32 (csrc/cuda) instead of float64


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
    """Instructions per 64 bytes and lane: all, of float64, conversions."""

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
    chunk: int | None  #: bytes that a block takes at a time; None: equal shares of units
    chain: float  #: seconds of dependent steps besides reading: search, table, publishing, combining


#: Counted in the machine code (LOOPS, of sm_90 and sm_89), for NOW with a quarter of what a unit costs.
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
    {"bfloat16": Mix(154, 34, 0), "float32": Mix(87, 18, 16)},
    {"bfloat16": Mix(240, 4, 1), "float32": Mix(139, 4, 1)},
    tensors_a_launch=None,
    finishing_launch=False,
    chunk=None,
    chain=2.0e-6,
)

#: By scripts/check_kernels.py, and what a unit costs beside its four batches (counted by hand, sm_90).
LOOPS = {
    "sm_80": (146, 134, 62, 62, 94, 41),
    "sm_86, sm_89": (215, 216, 114, 62, 94, 41),
    "sm_90": (129, 159, 62, 62, 94, 41),
    "sm_100": (130, 160, 62, 63, 95, 41),
    "sm_103": (216, 216, 115, 63, 97, 41),
    "sm_120": (217, 217, 116, 49, 75, 28),
}
UNIT_INSTRUCTIONS = 100

FIRST_LAUNCH, NEXT_LAUNCH = 5e-6, 2.5e-6  #: of a trivial kernel that reads; of one more in the stream
TENSOR_SECONDS = (
    1.1e-6  #: latency of one small tensor for those who read it: its data, its reduction, its row
)
WAVE_SECONDS = 1.0e-6  #: latency of a chunk for its block, when it is the only thing under way
RESIDENT = 4, 8  #: blocks a multiprocessor, warps a block (now 2 of 16)
BATCH, UNIT = 2048, 8192  #: bytes that a warp reads at a time, 64 a lane; bytes of a term of a tensor's sum

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


@dataclass(frozen=True)
class Prediction:
    memory: float
    issue: float
    pipes: float
    launches: int
    waves: float
    seconds: float


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
    # What is waited for one after the other overlaps with reading, which takes the longer of the two.
    work = max(memory, issue, pipes, serial)
    seconds = FIRST_LAUNCH + (launches - 1) * NEXT_LAUNCH + design.chain * min(1, tensors) + work
    return Prediction(memory, issue, pipes, launches, waves, seconds)


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

**Predicted, not measured.** Written by `scripts/predict_cuda.py` before any of this was measured, so
that a measurement can be held against it: `scripts/gpu_check.sh` prints both side by side.

Microseconds of one norm pass (`gradkern.get_total_norm`). *Floor*: one launch that reads the same bytes.
*Now*: one measure kernel for any number of tensors, as it is in this version. *Previous*: a measure kernel
for every 2,042 tensors and a finishing kernel, as versions before had, and as it was predicted then.

*Memory*, *issue* and *pipes* are what the kernel of this version needs of each alone: reading, instruction
slots, the slower of float64 and conversions. A clip adds one launch (2.5 µs, less where it is launched
ahead), and where it clips, a read and a write of the bytes. Where pointers have changed since the last call,
as they do with fresh gradients, an asynchronous copy of 16 bytes a tensor comes before. It is left out here.

Assumed: bandwidth, clocks and throughputs in the script (H200's bandwidth is measured, the others take its
share of the datasheet); 5 µs for a kernel that reads, 2.5 µs for the next one in the stream; instructions
per 64 bytes as counted in the machine code (`scripts/check_kernels.py`).

"""


def instructions() -> list[str]:
    """What NOW's mixes come from."""
    lines = [
        "## Instructions per 64 bytes and lane (counted)",
        "",
        "Main loops of the measure kernel. A unit of 8 KiB, four times round a loop, costs about "
        f"{UNIT_INSTRUCTIONS} more.",
        "",
        "| code for | bfloat16 | float16 | float32 | float64 | complex64 | complex128 |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [f"| {name} | {' | '.join(map(str, counts))} |" for name, counts in LOOPS.items()]
    return [*lines, ""]


def page() -> str:
    return "\n".join([HEAD, *instructions(), *(line for gpu in GPUS for line in table(gpu))])


def beside(gpu: Gpu, rows: list[dict[str, object]]) -> list[str]:
    """The rows of a benchmark that the table has, with what was predicted."""
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
    parser.add_argument("--measured", type=Path, help="what benchmarks/bench_cuda.py has written")
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
