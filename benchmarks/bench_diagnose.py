"""How long `diagnose` takes on a long run, and the memory it needs. Needs no torch to read.

    python benchmarks/bench_diagnose.py [--steps 10000] [--parameters 2000]

The run is made from a formula, with 1,000 looks at the weights and 1,000 histograms whatever its length.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gradkern.history.format import EXPONENTS, FORMATS
from gradkern.history.layout import Layout
from gradkern.history.rows import HistogramRow, Row, StepRow, WeightsRow
from gradkern.history.writer import HistoryWriter

_READ = """
import json, re, sys, time
import numpy
from gradkern.diagnosis import diagnose
from gradkern.history import History
start = time.perf_counter()
with History.open(sys.argv[1]) as history:
    findings = diagnose(history)
seconds = time.perf_counter() - start
# Not getrusage: its maximum survives exec.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
print(json.dumps({"seconds": round(seconds, 2), "peak_mib": round(peak), "findings": len(findings)}))
"""


def write_run(folder: Path, steps: int, parameters: int) -> None:
    """A run of so many steps by the file writer itself."""
    names = tuple(f"blocks.{i // 6}.part{i % 6}.weight" for i in range(parameters))
    layout = Layout(names, np.full(parameters, 4096, dtype=np.int64), np.arange(parameters))
    norms = np.exp(np.random.default_rng(0).standard_normal((512, parameters))).astype(np.float32)
    counts = np.full((parameters, len(EXPONENTS)), 8, dtype=np.int64)
    under = np.zeros((parameters, len(FORMATS)), dtype=np.float32)
    every = max(1, steps // 1000)
    writer = HistoryWriter(folder, {"norm_type": 2.0})
    rows: list[Row] = []
    for step in range(1, steps + 1):
        norm = norms[step % 512]
        total = float(np.linalg.norm(norm))
        rows.append(StepRow(step, float(step), layout, norm, norm / 8, total, loss=1 / step, lr=(0.1,)))
        if step % every == 0:
            rows.append(WeightsRow(step, layout, True, norm, norm / 1e3))
            rows.append(HistogramRow(step, layout, counts, under))
        if step % 256 == 0 or step == steps:
            writer.write(rows)
            rows.clear()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--parameters", type=int, default=2_000)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        write_run(Path(folder), wanted.steps, wanted.parameters)
        written = round(time.perf_counter() - start, 1)
        read = subprocess.run(
            [sys.executable, "-c", _READ, folder], check=True, capture_output=True, text=True
        )
        size = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6
    print(json.dumps({**vars(wanted), "file_mb": round(size), "write_s": written, **json.loads(read.stdout)}))


if __name__ == "__main__":
    main()
