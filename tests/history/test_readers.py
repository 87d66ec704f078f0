"""Readers during writing, and in folders that cannot be written."""

from __future__ import annotations

import copy
import os
import sqlite3
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from gradkern import History, HistoryError
from gradkern.history import format
from gradkern.history.writer import HistoryWriter
from tests.support.files import damage
from tests.support.loops import layout, step_row, write_run

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("journal", ["WAL", "TRUNCATE"])
def test_two_readers_beside_a_writer(tmp_path, journal):
    where = layout(20)
    values = RNG.random((1500, 20), dtype=np.float32)
    writer = HistoryWriter(tmp_path, {}, journal)
    assert writer.journal == journal
    writer.write([step_row(1, values[0], where)])
    problems: list[BaseException] = []
    seen: list[set[int]] = [set(), set()]
    done = threading.Event()

    def read(who: int) -> None:
        try:
            with History.open(tmp_path) as history:
                while not done.is_set() or len(history) < len(values):
                    history.refresh()
                    count = len(history)
                    seen[who].add(count)
                    assert history.steps.tolist() == list(range(1, count + 1))
                    first = max(0, count - 30)
                    np.testing.assert_array_equal(history.window(first, count).norm, values[first:count])
                    assert history.summary(10).rows.sum() == count
        except BaseException as error:
            problems.append(error)

    readers = [threading.Thread(target=read, args=(i,)) for i in range(2)]
    for reader in readers:
        reader.start()
    for start in range(1, len(values), 25):
        writer.write(
            [step_row(start + i + 1, row, where) for i, row in enumerate(values[start : start + 25])]
        )
        time.sleep(0.002)
    done.set()
    for reader in readers:
        reader.join(60)
    writer.close()
    assert not problems, problems
    assert all(len(s) >= 2 for s in seen)


@pytest.mark.parametrize("chunks", [[1] * 3, [255, 1, 1], [256, 256], [300, 700, 30], [1030]])
def test_blocks_say_what_the_rows_say(tmp_path, chunks):
    where, step = layout(2), 0
    writer = HistoryWriter(tmp_path, {})
    live = None
    for count in chunks:
        rows = []
        for _ in range(count):
            step += 1
            rates = tuple(0.1 * step + g for g in range(step % 3))
            loss = None if step % 5 == 0 else float("nan") if step % 7 == 0 else float(step)
            rows.append(
                step_row(step, [step, 1.0], where, loss=loss, lr=rates, clip_coef=0.5, inv_scale=0.25)
            )
        writer.write(rows)
        live = live or History.open(tmp_path)  # opened early, refreshed often
        live.refresh()
    writer.close()
    packed = sqlite3.connect(tmp_path / format.DATABASE).execute("SELECT count(*) FROM blocks").fetchone()[0]
    assert packed == step // 256
    numbers = np.arange(1, step + 1)
    for history in (live, History.open(tmp_path)):
        assert history.steps.tolist() == numbers.tolist()
        np.testing.assert_array_equal(history.has_loss, numbers % 5 != 0)
        given = (numbers % 5 != 0) & (numbers % 7 != 0)
        np.testing.assert_array_equal(history.loss, np.where(given, numbers, np.nan))
        groups = np.minimum(step, 2)
        assert history.lr_groups.shape == (step, groups)
        expected = [[0.1 * n + g if g < n % 3 else np.nan for g in range(groups)] for n in numbers]
        np.testing.assert_allclose(history.lr_groups, expected)
        assert set(history.inv_scale) == {0.25} and set(history.clip_coef) == {0.5}


def test_reading_from_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    write_run(tmp_path, RNG.random((5, 2), dtype=np.float32))
    damage(tmp_path, "PRAGMA journal_mode=WAL")  # as a run stays that was read when it ended
    os.chmod(tmp_path, 0o555)
    try:
        if os.geteuid() == 0:  # root may write anywhere: make SQLite's first attempt fail as it would
            real = sqlite3.connect

            def connect(name, **kw):
                return real("file:/nonexistent/x?mode=ro", **kw)

            monkeypatch.setattr(format.sqlite3, "connect", connect)
            with pytest.raises(HistoryError, match=r"cannot be written \(unable to open"):
                History.open(tmp_path)
            monkeypatch.undo()
        with History.open(tmp_path) as history:
            assert len(history) == 5
    finally:
        os.chmod(tmp_path, 0o755)


def test_opening_a_run_keeps_the_locks_of_the_process_that_records(tmp_path):
    """POSIX forgets all locks on a file once the process closes any descriptor of it."""
    writer = HistoryWriter(tmp_path, {}, "TRUNCATE")
    writer.write([step_row(1, [1, 1], layout(2))])
    writer._db.execute("BEGIN IMMEDIATE")
    History.open(tmp_path).close()
    code = (
        "import sqlite3, sys\n"
        "try: sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None).execute('BEGIN IMMEDIATE')\n"
        "except sqlite3.OperationalError as error: print(error)"
    )
    file = str(tmp_path / format.DATABASE)
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "database is locked", done
    writer._db.execute("ROLLBACK")
    writer.close()


def test_an_open_history_says_how_to_copy_it(tmp_path):
    write_run(tmp_path, np.ones((3, 2), dtype=np.float32))
    with pytest.raises(TypeError, match=r"open it again with History\.open"):
        copy.deepcopy(History.open(tmp_path))
