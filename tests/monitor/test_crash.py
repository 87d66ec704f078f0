"""A program that is killed, or ends without closing its monitor."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from gradkern import GradMonitor, History
from gradkern.history import format
from tests.support.loops import small_model

pytestmark = pytest.mark.integration

LOOP = """
import sys, warnings
sys.path.insert(0, {here!r})
import torch
torch.set_num_threads(1)
from tests.support.loops import small_model, train
from gradkern import GradMonitor
from gradkern.history import file_systems
file_systems.file_system = lambda *_: {file_system!r}
model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
monitor = GradMonitor(model, optimizer, {run!r})
while True:
    train(model, monitor, optimizer, 5)
    print(monitor.step, flush=True)
    {then}
"""


def start_loop(run: Path, then: str = "", file_system: str = "ext4") -> subprocess.Popen[str]:
    here = str(Path(__file__).parents[2])
    code = LOOP.format(here=here, run=str(run), then=then, file_system=file_system)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def killed_loop(run: Path, file_system: str) -> int:
    """Kill a loop after four seconds. Returns the last step recorded three seconds before that."""
    process = start_loop(run, "import time; time.sleep(0.002)", file_system)
    assert process.stdout is not None
    said, when = [], []
    for line in process.stdout:
        said.append(int(line))
        when.append(time.monotonic())
        if len(when) > 20 and when[-1] - when[0] > 4.0:
            break
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    # Several times the interval at which the thread looks for work: the machine may be busy.
    return max((s for s, t in zip(said, when) if when[-1] - t > 3.0), default=0)


def test_kill_9_loses_only_what_is_in_flight(tmp_path):
    systems = {"ext4": "WAL", "nfs4": "TRUNCATE"}
    with ThreadPoolExecutor() as pool:
        sure = list(pool.map(lambda kind: killed_loop(tmp_path / kind, kind), systems))
    for certain, (kind, journal) in zip(sure, systems.items()):
        run = tmp_path / kind
        with History.open(run) as history:
            assert history.steps.tolist() == list(range(1, len(history) + 1))
            assert len(history) >= certain > 0
            assert np.isfinite(history.norm).all() and history.meta["journal"] == journal
            before = len(history)
        with GradMonitor(small_model(), None, run) as monitor:  # and the lock is gone
            assert monitor.step == before
        check = sqlite3.connect(run / format.DATABASE).execute("PRAGMA integrity_check").fetchone()
        assert check == ("ok",)


def test_what_has_arrived_is_written_when_the_loop_ends(tmp_path):
    ends = {"raise": "raise RuntimeError('diverged')", "exit": "sys.exit(0)"}
    started = [start_loop(tmp_path / k, f"if monitor.step >= 20: {end}") for k, end in ends.items()]
    for name, process in zip(ends, started, strict=True):
        process.communicate(timeout=120)
        with History.open(tmp_path / name) as history:
            assert history.steps.tolist() == list(range(1, 21))
