"""The memory that a call needs beyond the gradients: at most max(0.1 %, 64 bytes per tensor + 1 MiB)."""

from __future__ import annotations

import sys

import pytest

PEAK = """
import ctypes, gc, torch, gradkern
from pathlib import Path
from tests.support.strategies import parameters
torch.set_num_threads(1)

def peak():
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

def extra(params, max_norm):
    gradkern.clip_grad_norm_(params[:1], max_norm)  # what the first call loads is no cost of a call
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or it would be served from what is there
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    gradkern.clip_grad_norm_(params, max_norm)
    return peak() - before

SMALL, MEDIUM = (10_000, 256, torch.float32), (2_000, 4_096, torch.bfloat16)
for count, numel, dtype in (SMALL, MEDIUM, (3, 2**27, torch.bfloat16)):
    params = parameters([torch.ones(numel, dtype=dtype) for _ in range(count)])
    for max_norm in (1.0, 1e30):
        size = count * numel * dtype.itemsize
        print(extra(params, max_norm), int(max(0.001 * size, 64 * count + 2**20)))
"""


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_of_a_clip(run_python):
    done = run_python(PEAK)
    lines = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(lines) == 6, done.stderr
    assert all(taken <= allowed for taken, allowed in lines), lines
    assert any(taken > 2**18 for taken, _ in lines)  # the measurement does see allocations
