"""One file and several processes: an active writer, a killed one, and one whose file was deleted."""

from __future__ import annotations

import re
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from gradkern import GradMonitor, History, HistoryError
from gradkern.history import database, format
from gradkern.history.writer import HistoryWriter
from tests.support.files import damage
from tests.support.loops import layout, small_model, step_row, write_run

FILE, JOURNAL, WAL = (format.DATABASE + ending for ending in ("", "-journal", "-wal"))


def as_killed(run: Path, copy: Path) -> None:
    """What a process that writes to `run` would leave if it were killed now."""
    copy.mkdir(exist_ok=True)
    for name in (FILE, JOURNAL, WAL):
        if (run / name).exists():
            (copy / name).write_bytes((run / name).read_bytes())


def killed_while_writing(folder: Path, run: Path) -> None:
    """A run of 40 steps with norms of 1, and a rollback journal that undoes another transaction."""
    write_run(folder, np.ones((40, 300), dtype=np.float32))
    connection = sqlite3.connect(folder / FILE, isolation_level=None)
    for statement in ("PRAGMA journal_mode=TRUNCATE", "PRAGMA cache_size=2", "BEGIN"):
        connection.execute(statement)
    connection.execute("UPDATE vals SET norm = zeroblob(length(norm))")
    connection.execute("DELETE FROM steps WHERE seq > 10")
    as_killed(folder, run)
    connection.execute("ROLLBACK")
    connection.close()
    assert (run / JOURNAL).stat().st_size and (run / FILE).read_bytes() != (folder / FILE).read_bytes()


def test_the_end_of_a_run_whose_file_was_replaced_leaves_the_new_one(tmp_path):
    run, where = tmp_path / "run", layout(2)
    old = HistoryWriter(run, {})
    old.write([step_row(1, [1, 1], where)])
    shutil.rmtree(run)
    new = HistoryWriter(run, {})
    new.write([step_row(s, [s, s], where) for s in range(1, 201)])
    old.close()
    as_killed(run, tmp_path / "killed")
    with History.open(tmp_path / "killed") as history:
        assert len(history) == 200
    new.close()
    with History.open(run) as history:
        assert len(history) == 200


def test_a_reader_does_not_look_past_a_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    writer = HistoryWriter(tmp_path, {}, "TRUNCATE")
    writer.write([step_row(1, [1, 1], layout(2))])
    writer._db.execute("BEGIN EXCLUSIVE")
    for start in (lambda: History.open(tmp_path), lambda: HistoryWriter(tmp_path, {})):
        with pytest.raises(HistoryError, match=r"history\.db': another process .* holds it .*; try again"):
            start()
    writer._db.execute("ROLLBACK")
    with History.open(tmp_path) as history:
        writer.write([step_row(2, [1, 1], layout(2))])
        assert history.refresh() == 1
    writer.close()


@pytest.mark.parametrize("first", ["a reader", "a writer"])
def test_what_a_killed_process_left_half_written_is_undone(tmp_path, first):
    run = tmp_path / "run"
    killed_while_writing(tmp_path / "whole", run)
    if first == "a writer":
        writer = HistoryWriter(run, {}, "TRUNCATE")
        assert writer.last_step == 40
        writer.close()
    with History.open(run) as history:
        assert len(history) == 40 and (history.norm == 1).all()


def test_a_process_that_is_killed_while_a_reader_has_its_file_open(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    killed_while_writing(tmp_path / "whole", tmp_path / "killed")
    shutil.copy(tmp_path / "whole" / FILE, run)
    with History.open(run) as history:
        as_killed(tmp_path / "killed", run)
        assert history.refresh() == 0 and len(history) == 40 and (history.norm == 1).all()


def test_a_journal_that_cannot_be_played_back_is_named(tmp_path, monkeypatch):
    run = tmp_path / "run"
    killed_while_writing(tmp_path / "whole", run)
    before = (run / FILE).read_bytes()
    connect = sqlite3.connect

    def read_only(name, **options):  # as in a folder that cannot be written; root may write anywhere
        return connect(name.replace("mode=rw", "mode=ro"), **options)

    monkeypatch.setattr(database.sqlite3, "connect", read_only)
    wanted = (
        rf"a process was killed while it wrote, and '{re.escape(str(run / JOURNAL))}'.*; open the run where"
    )
    with pytest.raises(HistoryError, match=wanted):
        History.open(run)
    assert (run / FILE).read_bytes() == before


@pytest.mark.parametrize("killed", [False, True])
def test_a_damaged_run_is_left_byte_for_byte(tmp_path, killed):
    whole, run = tmp_path / "whole", tmp_path / "run"
    write_run(whole, np.ones((40, 3), dtype=np.float32))
    if killed:
        writer = HistoryWriter(whole, {})
        damage(whole, "UPDATE layouts SET params = 'x'")
        as_killed(whole, run)
        writer.close()
    else:
        damage(whole, "UPDATE layouts SET params = 'x'")
        as_killed(whole, run)
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    assert (WAL in before) == killed
    with pytest.raises(HistoryError, match=r"layout 1: damaged: expected JSON"):
        GradMonitor(small_model(), None, run)
    assert {name: (run / name).read_bytes() for name in before} == before


def test_replaced_rows_are_not_read(tmp_path):
    where = layout(2)
    writer = HistoryWriter(tmp_path, {})
    for first, end in ((1, 2001), (51, 101)):
        writer.write([step_row(s, [s, s], where) for s in range(first, end)])
    writer.close()
    with History.open(tmp_path) as history:
        asked: list[str] = []
        history.connection.set_trace_callback(asked.append)
        np.testing.assert_array_equal(history.window(0, 100).norm[:, 0], np.arange(1, 101))
        ranges = [m.groups() for m in (re.search(r"BETWEEN (\d+) AND (\d+)", query) for query in asked) if m]
    assert ranges == [("1", "50"), ("2001", "2050")]
