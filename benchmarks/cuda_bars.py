"""The goals on a GPU, compared with a run of bench_cuda.py, also one that was cut off.

python benchmarks/cuda_bars.py bench_cuda.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1 << 20
LAUNCH_SECONDS = 5e-6
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
            yield Bar("clip that clips", case, gpu["gradkern"], 1.10 * (gpu["gradkern_norm"] + gpu["copy"]))
        else:
            yield Bar("clip that clips nothing", case, gpu["gradkern"], gpu["gradkern_norm"] + 4e-6)
            if row["dtypes"] == ["float32"]:
                yield Bar("all statistics", case, gpu["gradkern_statistics"], 1.05 * gpu["gradkern"])
        for name, seconds in gpu.items():
            if name.startswith("torch_"):
                yield Bar(f"no slower than {name}", case, gpu["gradkern"], seconds)
            elif name.startswith(PEERS):
                yield Bar(f"no slower than {name}", case, gpu["gradkern_norm"], seconds)
        yield Bar("launches", case, row["kernels"]["gradkern"], 2, "launches")
        tensors, host = row["tensors"], row["host_seconds"]
        if tensors in HOST_SECONDS:
            fresh, warm = HOST_SECONDS[tensors]
            yield Bar("host time, fresh gradients", case, host["gradkern_fresh"], tensors * fresh)
            yield Bar("host time, warm", case, host["gradkern_warm"], tensors * warm)


def main(arguments: Sequence[str]) -> None:
    for bar in bars(json.loads(Path(arguments[0]).read_text(encoding="utf-8"))["rows"]):
        print(bar)


if __name__ == "__main__":
    main(sys.argv[1:])
