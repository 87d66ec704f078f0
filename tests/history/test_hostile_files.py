"""Files that are not runs, files of other programs, damaged files, and malicious ones."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from gradkern import GradMonitor, History, HistoryError
from gradkern.history import format
from tests.support.files import damage
from tests.support.loops import small_model, write_run

RNG = np.random.default_rng(0)


def test_what_is_no_path_is_an_error():
    with pytest.raises(TypeError, match=r"\[History.open\] run_dir: expected the path of a folder, got int"):
        History.open(5)
    with pytest.raises(TypeError, match=r"\[GradMonitor\] run_dir: expected the path of a folder, got int"):
        GradMonitor(small_model(), run_dir=5)


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(HistoryError, match=r"history.db': no recorded run here: no such"):
        History.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"x", b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_another_file_is_named_and_left(tmp_path, content):
    file = tmp_path / format.DATABASE
    file.write_bytes(content)
    with pytest.raises(HistoryError, match=r"\[History.open\] .*history\.db'"):
        History.open(tmp_path)
    if content:
        with pytest.raises(HistoryError, match=r"\[GradMonitor\] .*history\.db'.*left as it is"):
            GradMonitor(small_model(), None, tmp_path)
    else:  # an empty file is what a process that died at once leaves
        GradMonitor(small_model(), None, tmp_path).close()
    if content:
        assert file.read_bytes() == content


@pytest.mark.parametrize("start", ["CREATE TABLE t (x)", "PRAGMA application_id = 7"])
@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
def test_a_foreign_database_is_left_byte_for_byte(tmp_path, start, journal):
    damage(tmp_path, start, "PRAGMA journal_mode=" + journal)
    file = tmp_path / format.DATABASE
    before = file.read_bytes()
    with pytest.raises(HistoryError, match=r"history\.db': expected a gradkern history, .*left as it is"):
        GradMonitor(small_model(), None, tmp_path)
    assert file.read_bytes() == before
    assert sorted(f.name for f in tmp_path.iterdir()) == [".lock", file.name]


def test_a_foreign_database_with_a_wal_is_left_byte_for_byte(tmp_path):
    foreign = sqlite3.connect(tmp_path / format.DATABASE)
    foreign.execute("PRAGMA journal_mode=WAL")
    foreign.execute("CREATE TABLE t (x)")
    names = (format.DATABASE, format.DATABASE + "-wal")
    run = tmp_path / "run"  # what a crash of the other program leaves
    run.mkdir()
    for name in names:
        (run / name).write_bytes((tmp_path / name).read_bytes())
    foreign.close()
    before = [(run / name).read_bytes() for name in names]
    with pytest.raises(HistoryError, match="got a database with other tables; it is left as it is"):
        GradMonitor(small_model(), None, run)
    assert [(run / name).read_bytes() for name in names] == before


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_named_not_restarted(tmp_path, part):
    write_run(tmp_path, RNG.random((200, 30), dtype=np.float32))
    file = tmp_path / format.DATABASE
    whole = file.read_bytes()
    file.write_bytes(whole[: int(part * len(whole))])
    for open_it in (History.open, lambda run: GradMonitor(small_model(), None, run)):
        with pytest.raises(
            HistoryError, match=r"history\.db': the file is truncated: expected \d+ bytes, got \d+"
        ):
            open_it(tmp_path)
    assert file.stat().st_size == int(part * len(whole))


def test_flipped_bytes_never_crash_the_reader(tmp_path):
    write_run(tmp_path / "good", RNG.random((60, 5), dtype=np.float32))
    whole = (tmp_path / "good" / format.DATABASE).read_bytes()
    generator = np.random.default_rng(3)
    messages = []
    for _ in range(150):
        damaged = bytearray(whole)
        for at in generator.integers(0, len(whole), 40):
            damaged[at] = generator.integers(0, 256)
        (tmp_path / format.DATABASE).write_bytes(bytes(damaged))
        try:
            with History.open(tmp_path) as history:
                assert history.norm.shape == (len(history), len(history.names))
                history.summary(5), history.lr, history.phase, history.meta, history.update_ratio
        except HistoryError as error:
            messages.append(str(error).lower())
    assert len(messages) > 10
    assert all("histor" in message for message in messages)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("CREATE TRIGGER t AFTER INSERT ON steps BEGIN DELETE FROM vals; END", "other tables"),
        ("CREATE VIEW v AS SELECT 1", "other tables"),
        ("DROP TABLE hists", "other tables"),
        ("PRAGMA user_version = 99", "written by a newer gradkern"),
        ("PRAGMA application_id = 77", "another program's database"),
        ("UPDATE vals SET norm = x'00' WHERE seq = 2", "damaged: expected 3 numbers"),
        ("UPDATE vals SET norm = 'text' WHERE seq = 2", "damaged: expected 3 numbers"),
        ("UPDATE vals SET nonfinite = x'ff' WHERE seq = 2", "expected pairs of integers"),
        ("UPDATE vals SET nonfinite = x'09000000000000000100000000000000'", "a row number is out of range"),
        ("DELETE FROM vals WHERE seq = 2", "row 2 of `vals` is missing"),
        ("UPDATE steps SET layout = 7", "layout 7 is missing"),
        ("UPDATE steps SET step = 'x' WHERE seq = 2", "steps: a damaged row"),
        ("UPDATE steps SET lr = x'01'", "steps.lr: damaged: expected reals"),
        ("UPDATE blocks SET data = x'00'", "expected packed columns"),
        ("UPDATE blocks SET idx = 3", "block 3: damaged: expected rows from 1"),
        ("UPDATE layouts SET params = '[1, 2'", "expected JSON"),
        ("UPDATE layouts SET params = '{\"names\": [1]}'", "expected a list of names"),
        ('UPDATE layouts SET params = \'{"names": ["a"], "numel": [-1]}\'', "expected 1 integers as numel"),
        (
            "UPDATE layouts SET params = replace(params, 'layers.0.bias', 'layers.0.weight')",
            "a name appears twice",
        ),
        ("UPDATE layouts SET params = '" + "[" * 100000 + "'", "expected JSON"),
        ("UPDATE summaries SET body = x'00'", "a damaged aggregate"),
        ("DELETE FROM summaries", "aggregates are missing"),
        ("UPDATE meta SET value = 'x'", "meta .*expected JSON"),
        ("INSERT INTO meta VALUES ('parts', '[1]')", "meta 'parts': damaged: expected a list of names"),
    ],
)
def test_hostile_content_gives_an_error(tmp_path, statement, message):
    rows = 300 if "blocks" in statement else 40
    write_run(tmp_path, RNG.random((rows, 3), dtype=np.float32))
    damage(tmp_path, statement)
    with pytest.raises(HistoryError, match=message), History.open(tmp_path) as history:
        history.norm, history.summary(2), history.lr, history.meta, history.parts


LARGEST = 2**63 - 1


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (f"UPDATE summaries SET level = {2**60}", f"level {2**60} is out of range"),
        ("UPDATE summaries SET level = 'x'", "level 'x' is out of range"),
        (f"INSERT INTO branches VALUES ({LARGEST}, NULL, 1, 0, 0)", "branches: row number .* out of range"),
        (
            f"UPDATE layouts SET id = {2**63 - 1}; UPDATE steps SET layout = {2**63 - 1}",
            "layouts: row number",
        ),
        (f"UPDATE steps SET seq = {LARGEST} WHERE seq = 17", "steps: row number .* out of range"),
    ],
)
def test_numbers_that_nobody_counted_to_stop_a_monitor(tmp_path, statement, message):
    write_run(tmp_path, RNG.random((17, 3), dtype=np.float32))
    damage(tmp_path, *statement.split("; "))
    with pytest.raises(HistoryError, match=rf"{message}.*history\.db"):
        GradMonitor(small_model(), None, tmp_path)


def test_a_layout_of_more_names_than_a_model_has(tmp_path):
    write_run(tmp_path, RNG.random((3, 3), dtype=np.float32))
    count = 2**20 + 1
    names, zeros = ",".join(f'"{i}"' for i in range(count)), ",".join("0" * count)
    params = f'{{"names":[{names}],"numel":[{zeros}],"first":[{zeros}]}}'
    damage(tmp_path, f"UPDATE layouts SET params = '{params}'")
    with pytest.raises(HistoryError, match=r"expected at most 1048576 names, got 1048577 .*history\.db"):
        History.open(tmp_path)


def test_what_does_not_fit_into_memory_names_the_file(tmp_path, monkeypatch):
    write_run(tmp_path, RNG.random((3, 3), dtype=np.float32))

    def full(*_):
        raise MemoryError

    with History.open(tmp_path) as history:
        monkeypatch.setattr("gradkern.history.reader.Columns", full)
        with pytest.raises(HistoryError, match=r"history\.db': too large for this machine's memory"):
            history.norm  # noqa: B018


def test_nothing_is_unpickled():
    folder = Path(format.__file__).parent
    text = "".join(file.read_text() for file in folder.glob("*.py"))
    for word in ("pickle", "eval(", "exec(", "torch.load", "allow_pickle"):
        assert word not in text.replace("unpickled", "")
