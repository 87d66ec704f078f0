"""The goals on a GPU, compared with a run of bench_cuda.py, also one that was cut off.

    python benchmarks/cuda_bars.py bench_cuda.json [--missed missed.json]

`--missed` names a file for the list of missed bars. The exit status is 0 if all are met, 3 if one is missed.

- A clip that scales has a bar for the norm pass and one for the scale, the difference of both times.
- A clip in a CUDA graph has the same bar as one outside, although every replay also runs the kernels that
  write the graph's table.
- A clip of new gradients also copies its table. Its launches have a bar; its GPU time has none.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1 << 20
LAUNCH_SECONDS = 5e-6
BARS_MISSED = 3  #: exit status; that of a crash is 1
PEERS = "peer:"
#: Host seconds per tensor, by the number of tensors: gradients new since the last call, and the same ones.
HOST_SECONDS = {2000: (120e-9, 40e-9), 10000: (160e-9, 40e-9)}


@dataclass(frozen=True)
class Bar:
    """A measured value and its goal, an upper limit; in seconds, or in `unit`."""

    name: str
    case: str
    value: float
    limit: float
    unit: str = "s"

    @property
    def met(self) -> bool:
        return self.value <= self.limit

    def __str__(self) -> str:
        verdict = "met" if self.met else "MISSED"
        amounts = f"{self.value:g} {self.unit}, at most {self.limit:g}"
        if self.unit == "s":
            amounts = f"{self.value * 1e6:.1f} µs, at most {self.limit * 1e6:.1f} µs"
        return f"{verdict:7}{self.name}: {self.case}: {amounts}"


def bandwidth(rows: Sequence[dict[str, Any]]) -> float:
    """Bytes per second, from which T_floor is computed: those of the faster floor of the largest row, because
    a reduction may not reach the memory's bandwidth."""
    largest = max(rows, key=lambda row: row["bytes"])
    seconds = largest["gpu_seconds"]
    return largest["bytes"] / min(seconds["read"], seconds["copy"] / 2)


def bars(rows: Sequence[dict[str, Any]]) -> Iterator[Bar]:
    rate = bandwidth(rows)
    for row in rows:
        gpu, size = row["gpu_seconds"], row["bytes"]
        case = (
            f"{row['case']}, {'+'.join(row['dtypes'])}, {'clipping' if row['clipping'] else 'not clipping'}"
        )
        factor = 1.05 if size >= 256 * MIB else 1.25 if size >= 16 * MIB else 1.4
        yield Bar("norm pass", case, gpu["gradkern_norm"], factor * (LAUNCH_SECONDS + size / rate))
        if row["clipping"]:
            # Of the scale alone: a slower norm must not give it more room.
            yield Bar("scale", case, gpu["gradkern"] - gpu["gradkern_norm"], 1.10 * gpu["copy"])
        else:
            most = gpu["gradkern_norm"] + 4e-6
            yield Bar("clip that clips nothing", case, gpu["gradkern"], most)
            if "gradkern_graph" in gpu:
                yield Bar("clip that clips nothing, in a graph", case, gpu["gradkern_graph"], most)
            if row["dtypes"] == ["float32"]:
                yield Bar("all statistics", case, gpu["gradkern_statistics"], 1.05 * gpu["gradkern"])
        for name, seconds in gpu.items():
            if name.startswith("torch_"):
                yield Bar(f"no slower than {name}", case, gpu["gradkern"], seconds)
            elif name.startswith(PEERS):
                yield Bar(f"no slower than {name}", case, gpu["gradkern_norm"], seconds)
        kernels, tensors, host = row["kernels"], row["tensors"], row["host_seconds"]
        yield Bar("launches", case, kernels["gradkern"], 2, "launches")
        if "gradkern_fresh" in kernels:
            yield Bar("launches and copies, fresh gradients", case, kernels["gradkern_fresh"], 3, "in all")
        if tensors in HOST_SECONDS and "gradkern_fresh" in host:
            fresh, warm = HOST_SECONDS[tensors]
            yield Bar("host time, fresh gradients", case, host["gradkern_fresh"], tensors * fresh)
            yield Bar("host time, warm", case, host["gradkern_warm"], tensors * warm)


def step_bars(seconds: dict[str, float]) -> Iterator[Bar]:
    """Of a whole training step."""
    yield Bar("whole step, no slower than torch", "a transformer", seconds["gradkern"], seconds["torch"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="JSON file of bench_cuda.py")
    parser.add_argument("--missed", type=Path, help="JSON file to write: a list of the missed bars")
    options = parser.parse_args(arguments)
    record = json.loads(options.results.read_text(encoding="utf-8"))
    judged = list(bars(record["rows"]))
    if "training_step_gpu_seconds" in record:
        judged += step_bars(record["training_step_gpu_seconds"])
    print(*judged, sep="\n")
    missed = [str(bar).removeprefix("MISSED").strip() for bar in judged if not bar.met]
    print(f"{len(missed)} of {len(judged)} bars missed")
    if options.missed:
        options.missed.write_text(json.dumps(missed, indent=1) + "\n", encoding="utf-8")
    return BARS_MISSED if missed else 0


if __name__ == "__main__":
    sys.exit(main())
