"""The speed of writing a history, and of opening a long one. Part of bench_monitor.py."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import gradkern
from gradkern.history.layout import Layout
from gradkern.history.rows import StepRow
from gradkern.history.writer import HistoryWriter

_AHEAD = 1000
_OPEN = """
import json, re, sys, time
from gradkern import History
from gradkern.report.load import load
from gradkern.report import write_report
def memory():
    # Not getrusage: its maximum survives exec, and so is that of the process that started this one.
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
before, start = memory(), time.perf_counter()
history = History.open(sys.argv[1])
count, last, total = len(history), int(history.steps[-1]), float(history.total_norm[-1])
opened, held = time.perf_counter() - start, memory() - before
start = time.perf_counter()
summary = history.summary(1000)
summarised = time.perf_counter() - start
start = time.perf_counter()
page = write_report(sys.argv[1])
reported = time.perf_counter() - start
print(json.dumps({"rows": count, "open_s": opened, "open_mib": held, "summary_s": summarised,
                  "report_s": reported, "report_mb": page.stat().st_size / 1e6,
                  "process_mib": memory()}))
"""


def record_flat_out(count: int, rows: int) -> dict[str, float]:
    """Times `record` in a loop without pauses, until all rows are on disk.

    Every 1,000 rows the loop waits until all are written, because `record` never waits long itself and would
    drop steps on a busy machine.

    A layer-value is one norm of one parameter at one step; largest magnitudes and counts of inf and NaN
    come with it and are not counted.
    """
    params = [(f"p{i}", nn.Parameter(torch.randn(4))) for i in range(count)]
    for _, p in params:
        p.grad = torch.randn(4)
    stats = gradkern.measure(params)
    with tempfile.TemporaryDirectory() as folder, gradkern.GradMonitor(params, None, folder) as monitor:
        start = time.perf_counter()
        handed = 0.0
        for _ in range(0, rows, _AHEAD):
            began = time.perf_counter()
            for _ in range(_AHEAD):
                monitor.record(stats, loss=0.5)
            handed += time.perf_counter() - began
            assert monitor.flush()
        taken = time.perf_counter() - start
        assert monitor.lost == 0 and len(monitor.history()) == rows
    return {
        "rows": rows,
        "record_us": 1e6 * handed / rows,
        "row_us": 1e6 * taken / rows,
        "layer_values_per_s": count * rows / taken,
    }


def write_long_run(folder: Path, rows: int, layers: int = 300) -> float:
    """Writes a run with the file writer itself; returns the seconds it took."""
    names = tuple(f"blocks.{i // 6}.part{i % 6}.weight" for i in range(layers))
    layout = Layout(names, np.full(layers, 4096, dtype=np.int64), np.arange(layers))
    generator = np.random.default_rng(0)
    norms = np.exp(generator.standard_normal((512, layers))).astype(np.float32)
    writer = HistoryWriter(folder, {"norm_type": 2.0})
    start = time.perf_counter()
    for first in range(0, rows, 256):
        writer.write([_row(step, norms[step % 512], layout) for step in range(first, min(first + 256, rows))])
    writer.close()
    return time.perf_counter() - start


def _row(number: int, norm: np.ndarray[Any, Any], layout: Layout) -> StepRow:
    total = 20.0 + number % 7
    return StepRow(
        step=number + 1,
        time=1.7e9 + 0.2 * number,
        layout=layout,
        norm=norm,
        max_abs=norm,
        total_norm=total,
        loss=3.0 + 1e3 / (number + 1),
        clip_coef=min(1.0, 22.0 / total),
        phase="before_clip",
        lr=(1e-3,),
    )


def open_long_run(folder: Path) -> dict[str, float]:
    """Seconds and memory of opening it, of a summary and of a report, in a separate process."""
    done = subprocess.run(
        [sys.executable, "-c", _OPEN, str(folder)], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure_history(rows: int) -> dict[str, Any]:
    """Everything above; printed and returned."""
    found: dict[str, Any] = {"flat_out": {}}
    for count, steps in ((300, 20_000), (2000, 5_000)):
        taken = record_flat_out(count, steps)
        found["flat_out"][str(count)] = taken
        print(
            f"\n{count} parameters, record() without a pause: {taken['row_us']:.0f} µs a row on disk, "
            f"{taken['layer_values_per_s'] / 1e6:.2f} million layer-values a second"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found["write_s"] = write_long_run(folder, rows)
        found["file_mb"] = (folder / "history.db").stat().st_size / 1e6
        found.update(open_long_run(folder))
    print(
        f"{rows:,} steps × 300 layers: written in {found['write_s']:.1f} s, {found['file_mb']:.0f} MB on "
        f"disk; opens in {found['open_s']:.2f} s with {found['open_mib']:.0f} MiB, report in "
        f"{found['report_s']:.2f} s ({found['report_mb']:.1f} MB, process {found['process_mib']:.0f} MiB)"
    )
    return found
