"""Folders that cannot be written, disks that are full or slow: the monitor's side."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from gradkern import GradClipper, GradMonitor, History, HistoryError
from gradkern.monitor.writing import committer, queue
from tests.support.files import assert_summary_is_right
from tests.support.loops import small_model, train, write_run

RNG = np.random.default_rng(0)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HistoryError, match=r"\[GradMonitor\] run_dir '.*run': cannot be written"):
        GradMonitor(small_model(), None, tmp_path / "file" / "run")


def test_a_read_only_folder_is_an_error_before_training(tmp_path, run_with_torch):
    run = tmp_path / "run"
    write_run(run, RNG.random((5, 2), dtype=np.float32))
    code = (
        "import os\n"
        "from tests.support.loops import small_model\nfrom gradkern import GradMonitor, HistoryError\n"
        "if os.geteuid() == 0: os.setegid(65534); os.seteuid(65534)\n"
        f"try: GradMonitor(small_model(), None, {str(run)!r})\n"
        "except HistoryError as error: print(error)\n"
    )
    for directory in [run, *run.parents]:
        if directory == Path("/tmp"):
            break
        os.chmod(directory, 0o555)
    try:
        out = run_with_torch(code)
    finally:
        os.chmod(run, 0o755)
    assert "run': cannot be written: [Errno 13] Permission denied" in out.stdout, out


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(committer, "RETRY", 0.05)
    monkeypatch.setattr(committer, "RETRY_MOST", 0.1)
    monkeypatch.setattr(queue, "PATIENCE", 0.1)


def fill_disk(monitor: GradMonitor, full: bool) -> None:
    """A database that may not grow gives SQLite's own "database or disk is full"."""
    database = monitor._recording.thread._writer._db
    pages = database.execute("PRAGMA page_count").fetchone()[0] if full else 1 << 30
    database.execute(f"PRAGMA max_page_count={pages}")


def test_a_full_disk_is_warned_of_and_training_goes_on(tmp_path, quick):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradMonitor(model, optimizer, tmp_path, update_every=0) as monitor:
        train(model, monitor, optimizer, 10)
        assert monitor.flush()
        fill_disk(monitor, True)
        with pytest.warns(
            RuntimeWarning, match=r"history\.db': database or disk is full\. Training continues"
        ):
            train(model, monitor, optimizer, 300)
            assert not monitor.flush()
        fill_disk(monitor, False)
        train(model, monitor, optimizer, 10)
        assert monitor.flush()
        history = monitor.history()
        assert history.steps.tolist() == list(range(1, 321)) and monitor.lost == 0
        assert_summary_is_right(history, 30)


def test_a_disk_that_stays_full_costs_no_memory(tmp_path, quick):
    model = small_model()
    model(torch.ones(2, 6)).sum().backward()
    stats = GradClipper(model, 1.0).clip_()
    monitor = GradMonitor(model, None, tmp_path)
    monitor._recording.thread._queue.limit = 64 * 1024
    monitor.record(stats)
    assert monitor.flush()
    fill_disk(monitor, True)
    with pytest.warns(RuntimeWarning) as warned:
        for _ in range(20):
            for _ in range(100):
                monitor.record(stats)
            monitor.flush()
        held = len(monitor._recording.thread.committer.rows) + len(monitor._recording.thread._queue)
        monitor.close()
    assert held < 200
    assert any("rows could not be written" in str(w.message) for w in warned)
    written = len(History.open(tmp_path))
    assert written + monitor.lost == 2001 and monitor.lost > 1000


def test_a_stalled_disk_costs_the_loop_one_bounded_wait(tmp_path, quick, monkeypatch):
    model = small_model()
    model(torch.ones(2, 6)).sum().backward()
    stats = GradClipper(model, 1.0).clip_()
    with GradMonitor(model, None, tmp_path) as monitor:
        monitor._recording.thread._queue.limit = 64 * 1024
        hold = threading.Event()
        real = monitor._recording.thread._writer.write
        monkeypatch.setattr(
            monitor._recording.thread._writer, "write", lambda rows: (hold.wait(30), real(rows))
        )
        start = time.monotonic()
        with pytest.warns(RuntimeWarning, match="steps come faster than they can be written"):
            for _ in range(3000):
                monitor.record(stats)
        assert time.monotonic() - start < 10
        hold.set()
        lost = monitor.lost
        assert lost > 0 and monitor.flush()
        monitor.record(stats)
        assert monitor.history().steps[-1] == 3001 and len(monitor.history()) == 3001 - lost
