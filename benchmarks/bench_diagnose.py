"""How long `diagnose` takes on a long run, and the memory it needs.

    python benchmarks/bench_diagnose.py [--steps 10000] [--parameters 2000] [--save diagnose_cpu]

The run is made from a formula: blocks of linear layers whose gradients vanish towards the input, with
1,000 looks at the weights, 1,000 looks at the gradients and 1,000 histograms, whatever its length. It is
read in a process of its own, which does not import torch. 100,000 steps of 2,000 parameters need 4 GB of
disk while it runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import RESULTS, describe

from gradkern.history.format import EXPONENTS, FORMATS
from gradkern.history.layout import Layout
from gradkern.history.rows import FactsRow, HistogramRow, Row, StepRow, WeightsRow, ZerosRow
from gradkern.history.writer import HistoryWriter

WIDTH = 64
PARTS = ("attn.in", "attn.out", "mlp.up", "mlp.down")
_READ = """
import json, re, sys, time
start = time.perf_counter()
from gradkern.diagnosis import diagnose
from gradkern.history import History
imported = time.perf_counter()
with History.open(sys.argv[1]) as history:
    findings = diagnose(history)
seconds = time.perf_counter() - imported
# Not getrusage: its maximum survives exec.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
print(json.dumps({"import_s": round(imported - start, 2), "seconds": round(seconds, 2),
                  "peak_mib": round(peak), "findings": [f.kind for f in findings]}))
"""


def layout_of(parameters: int) -> Layout:
    """The weights and biases of linear layers, four to a block."""
    names, shapes = [], []
    for i in range(parameters):
        layer = i // 2
        part = PARTS[layer % len(PARTS)]
        names.append(f"blocks.{layer // len(PARTS)}.{part}.{('weight', 'bias')[i % 2]}")
        shapes.append([WIDTH, WIDTH] if i % 2 == 0 else [WIDTH])
    details = {
        "shape": shapes,
        "dtype": ["float32"] * parameters,
        "trainable": [True] * parameters,
        "kind": ["Linear"] * parameters,
    }
    numel = np.array([int(np.prod(shape)) for shape in shapes], dtype=np.int64)
    return Layout(tuple(names), numel, np.arange(parameters), details)


def write_run(folder: Path, steps: int, parameters: int) -> None:
    """Write a run of `steps` steps with the history's own file writer."""
    layout = layout_of(parameters)
    random = np.random.default_rng(0)
    fading = 10.0 ** np.linspace(-8, 0, parameters)
    norms = (fading * np.exp(0.3 * random.standard_normal((512, parameters)))).astype(np.float32)
    counts = np.zeros((parameters, len(EXPONENTS)), dtype=np.int64)
    counts[:, 30:50] = random.integers(0, 100, (parameters, 20))
    under = np.zeros((parameters, len(FORMATS)), dtype=np.float32)
    weights = (np.sqrt(layout.numel) / 8).astype(np.float32)  # rms 1 / sqrt(fan_in)
    zeros = np.where(layout.numel == WIDTH, 0, -1)
    every = max(1, steps // 1000)
    writer = HistoryWriter(folder, {"norm_type": 2.0})
    facts = {"modules": {name.rpartition(".")[0]: "Linear" for name in layout.names}}
    rows: list[Row] = [FactsRow(1, facts)]
    for step in range(1, steps + 1):
        norm = norms[step % 512]
        total, loss = float(np.linalg.norm(norm)), 2.3 + 0.01 * (step % 7)
        rows.append(StepRow(step, float(step), layout, norm, norm / 8, total, loss=loss, lr=(0.1,)))
        if step % every == 0:
            rows.append(WeightsRow(step, layout, True, weights, norm / 1e3))
            rows.append(ZerosRow(step, layout, np.ones(parameters, dtype=np.float32), zeros))
            rows.append(HistogramRow(step, layout, counts, under))
        if step % 256 == 0 or step == steps:
            writer.write(rows)
            rows.clear()
    writer.close()


def measure(steps: int, parameters: int) -> dict[str, Any]:
    """One run, written and then diagnosed in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        write_run(Path(folder), steps, parameters)
        command = [sys.executable, "-c", _READ, folder]
        read = subprocess.run(command, check=True, capture_output=True, text=True)
        size = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6
    return {"steps": steps, "parameters": parameters, "file_mb": round(size), **json.loads(read.stdout)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--parameters", type=int, default=2_000)
    parser.add_argument("--save", metavar="NAME", help="add the result to benchmarks/results/NAME.json")
    wanted = parser.parse_args()
    started = time.perf_counter()
    result = measure(wanted.steps, wanted.parameters)
    print(json.dumps(result), f"({time.perf_counter() - started:.0f} s with writing the run)")
    if wanted.save:
        path = RESULTS / f"{wanted.save}.json"
        known = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
        size = wanted.steps, wanted.parameters
        others = [run for run in known if (run["steps"], run["parameters"]) != size]
        runs = sorted([*others, result], key=lambda run: (run["steps"], run["parameters"]))
        record = {"machine": describe(), "runs": runs}
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
