"""The file: crashes, resumes, readers beside a writer, damage, full and read-only disks."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from _loops import layout, small_model, step_row, train, write_run

from gradkern import GradClipper, GradMonitor, History, HistoryError
from gradkern.monitor import file_systems, recorder, store
from gradkern.monitor.rows import WeightsRow
from gradkern.monitor.writer import HistoryWriter

RNG = np.random.default_rng(0)


# ---- resume, branches, summaries ----


def assert_summary_is_right(history: History, points: int) -> None:
    summary = history.summary(points)
    assert 0 < len(summary) <= points and summary.rows.sum() == len(history)
    start = 0
    rms, bad = history.rms, history.nonfinite
    for p in range(len(summary)):
        rows = slice(start, start + summary.rows[p])
        start = rows.stop
        block = np.where(np.isfinite(rms[rows]), rms[rows], np.nan).astype(np.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # all-NaN columns
            np.testing.assert_allclose(summary.rms[p], np.nanmean(block, axis=0), rtol=1e-5)
            np.testing.assert_allclose(summary.rms_min[p], np.nanmin(block, axis=0), rtol=1e-6)
            np.testing.assert_allclose(summary.rms_max[p], np.nanmax(block, axis=0), rtol=1e-6)
        np.testing.assert_array_equal(summary.nonfinite[p], bad[rows].sum(axis=0))
        assert (summary.step0[p], summary.step1[p]) == (history.steps[rows][0], history.steps[rows][-1])
        np.testing.assert_allclose(summary.total_norm[p], history.total_norm[rows].mean(), rtol=1e-6)
        np.testing.assert_allclose(summary.total_norm_max[p], history.total_norm[rows].max())


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 63, 64, 65, 255, 256, 300, 1023, 1030])
@pytest.mark.parametrize("points", [1, 3, 50])
def test_summaries_agree_with_the_rows(tmp_path, rows, points):
    write_run(tmp_path, RNG.random((rows, 4), dtype=np.float32))
    with History.open(tmp_path) as history:
        assert_summary_is_right(history, points)


def test_summaries_survive_reopening_and_going_back_anywhere(tmp_path):
    where, steps = layout(3), 0
    generator = np.random.default_rng(5)
    for _ in range(25):
        writer = HistoryWriter(tmp_path, {})
        steps = int(generator.integers(max(0, steps - 90), steps + 1))
        count = int(generator.integers(1, 120))
        values = generator.random((count, 3), dtype=np.float32)
        writer.write([step_row(steps + 1 + i, row, where) for i, row in enumerate(values)])
        steps += count
        assert writer.last_step == steps
        writer.close()
        with History.open(tmp_path) as history:
            assert history.steps.tolist() == list(range(1, steps + 1))
            np.testing.assert_array_equal(history.norm[-count:], values)
            assert_summary_is_right(history, 7)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 64, 200])
def test_one_step_recorded_again_and_again_opens_nothing_again(tmp_path, rows, monkeypatch):
    where, generator = layout(3), np.random.default_rng(rows)
    values = generator.random((rows + 40, 3), dtype=np.float32)
    writer = HistoryWriter(tmp_path, {})
    writer.write([step_row(1 + i, values[i], where) for i in range(rows)])
    opened: list[Path] = []
    real = History.open
    monkeypatch.setattr(History, "open", lambda run, **kw: opened.append(run) or real(run, **kw))
    for again in range(40):
        for _ in range(3):
            writer.write([step_row(rows, values[rows + again], where)])
    assert not opened
    monkeypatch.undo()
    writer.write([step_row(rows + 1 + i, values[rows + i], where) for i in range(40)])
    writer.close()
    with History.open(tmp_path) as history:
        assert history.steps.tolist() == list(range(1, rows + 41))
        np.testing.assert_array_equal(history.norm[rows - 1], values[-1])
        assert [(b.from_step, b.replaced) for b in history.branches] == [(rows, 1)] * 120
        assert_summary_is_right(history, 7)


def test_short_steps_back_anywhere_without_reopening(tmp_path):
    where, generator, steps = layout(2), np.random.default_rng(8), 0
    shown: list[float] = []
    writer = HistoryWriter(tmp_path, {})
    replaced = []
    for _ in range(200):
        back = int(generator.integers(0, min(steps, 12) + 1)) if generator.random() < 0.7 else 0
        count = int(generator.integers(1, 16))
        steps -= back
        del shown[steps:]
        replaced += [back] * (back > 0)
        values = generator.random((count, 2), dtype=np.float32)
        writer.write([step_row(steps + 1 + i, row, where) for i, row in enumerate(values)])
        steps += count
        shown += values[:, 0].tolist()
    writer.close()
    with History.open(tmp_path) as history:
        assert history.steps.tolist() == list(range(1, steps + 1))
        assert history.norm[:, 0].tolist() == shown
        assert [b.replaced for b in history.branches] == replaced
        for points in (1, 5, 40):
            assert_summary_is_right(history, points)


def test_summary_rolls_up_to_layers(tmp_path):
    write_run(tmp_path, RNG.random((40, 6), dtype=np.float32))
    with History.open(tmp_path) as history:
        summary = history.summary(40, depth=2)
        assert summary.names == ("layers.0", "layers.1", "layers.2") == history.layers(2).names
        np.testing.assert_allclose(summary.rms, history.layers(2).rms, rtol=1e-5)
        with pytest.raises(ValueError, match=r"\[History.summary\] max_points: expected at least 1, got 0"):
            history.summary(0)
        for depth in (-1, "2", 1.5):
            for ask, name in ((history.layers, "layers"), (lambda d: history.summary(5, d), "summary")):
                with pytest.raises(ValueError, match=rf"\[History.{name}\] depth: expected None or an int"):
                    ask(depth)


def test_a_summary_does_not_read_the_rows(tmp_path):
    write_run(tmp_path, RNG.random((5000, 4), dtype=np.float32), batch=500)
    with History.open(tmp_path) as history:
        read: list[str] = []
        history.connection.set_trace_callback(read.append)
        assert len(history.summary(20)) <= 20
        rows = [q for q in read if "FROM vals" in q]
        first, last = map(int, rows[0].split("BETWEEN ")[1].split(" AND "))
        assert len(rows) == 1 and last - first < 16


def test_resume_goes_on_where_the_run_was(tmp_path):
    for expected_first in (1, 11):
        model = small_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with GradMonitor(model, optimizer, tmp_path) as monitor:
            assert monitor.step == expected_first - 1
            train(model, monitor, optimizer, 10)
    with History.open(tmp_path) as history:
        assert history.steps.tolist() == list(range(1, 21)) and not history.branches


def test_a_step_that_goes_backwards_starts_a_branch(tmp_path):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradMonitor(model, optimizer, tmp_path, update_every=4) as monitor:
        train(model, monitor, optimizer, 6)
        checkpoint = monitor.state_dict()
        first = train(model, monitor, optimizer, 14)
    with GradMonitor(model, optimizer, tmp_path, update_every=4) as monitor:
        monitor.load_state_dict(checkpoint)
        second = train(model, monitor, optimizer, 5)
        assert monitor.step == 11
    with History.open(tmp_path) as history:
        assert history.steps.tolist() == list(range(1, 12))
        np.testing.assert_array_equal(history.total_norm[6:], [s.total_norm.item() for s in second])
        (branch,) = history.branches
        assert (branch.from_step, branch.replaced) == (7, 14)
        assert history.update_steps.tolist() == [1, 4, 8]
    with History.open(tmp_path, superseded=True) as history:
        assert history.steps.tolist() == [*range(1, 21), *range(7, 12)]
        np.testing.assert_array_equal(history.total_norm[6:20], [s.total_norm.item() for s in first])
        assert len(history.summary(5)) == 5


def test_a_step_given_twice_replaces_the_first(tmp_path):
    where = layout(2)
    writer = HistoryWriter(tmp_path, {})
    weights = WeightsRow(3, where, True, np.ones(2, np.float32), np.ones(2, np.float32))
    writer.write([step_row(s, [s, s], where) for s in (1, 2)])
    writer.write([weights, step_row(3, [3, 3], where)])  # weights before their step: no branch
    writer.write([step_row(3, [9, 9], where), step_row(2, [8, 8], where)])
    writer.close()
    with History.open(tmp_path) as history:
        assert history.steps.tolist() == [1, 2] and history.norm[:, 0].tolist() == [1, 8]
        assert [(b.from_step, b.replaced) for b in history.branches] == [(3, 1), (2, 2)]


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
    packed = sqlite3.connect(tmp_path / store.DATABASE).execute("SELECT count(*) FROM blocks").fetchone()[0]
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


# ---- crash ----

LOOP = """
import sys, warnings
sys.path.insert(0, {here!r})
import torch
torch.set_num_threads(1)
from _loops import small_model, train
from gradkern import GradMonitor
from gradkern.monitor import file_systems
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
    here = str(Path(__file__).parent)
    code = LOOP.format(here=here, run=str(run), then=then, file_system=file_system)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def killed_loop(run: Path, file_system: str) -> int:
    """A loop that is killed after four seconds; the last step recorded three seconds before that."""
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
        check = sqlite3.connect(run / store.DATABASE).execute("PRAGMA integrity_check").fetchone()
        assert check == ("ok",)


def test_what_has_arrived_is_written_when_the_loop_ends(tmp_path):
    ends = {"raise": "raise RuntimeError('diverged')", "exit": "sys.exit(0)"}
    started = [start_loop(tmp_path / k, f"if monitor.step >= 20: {end}") for k, end in ends.items()]
    for name, process in zip(ends, started, strict=True):
        process.communicate(timeout=120)
        with History.open(tmp_path / name) as history:
            assert history.steps.tolist() == list(range(1, 21))


# ---- readers beside a writer ----


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


def test_reading_from_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    write_run(tmp_path, RNG.random((5, 2), dtype=np.float32))
    damage(tmp_path, "PRAGMA journal_mode=WAL")  # as a run stays that was read when it ended
    os.chmod(tmp_path, 0o555)
    try:
        if os.geteuid() == 0:  # root may write anywhere: make SQLite's first attempt fail as it would
            real = sqlite3.connect

            def connect(name, **kw):
                return real("file:/nonexistent/x?mode=ro", **kw)

            monkeypatch.setattr(store.sqlite3, "connect", connect)
            with pytest.raises(HistoryError, match="can be written, got: unable to open"):
                History.open(tmp_path)
            monkeypatch.undo()
        with History.open(tmp_path) as history:
            assert len(history) == 5
    finally:
        os.chmod(tmp_path, 0o755)


@pytest.mark.parametrize("start", ["CREATE TABLE t (x)", "PRAGMA application_id = 7"])
@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
def test_a_foreign_database_is_left_byte_for_byte(tmp_path, start, journal):
    damage(tmp_path, start, "PRAGMA journal_mode=" + journal)
    file = tmp_path / store.DATABASE
    before = file.read_bytes()
    with pytest.raises(HistoryError, match=r"history\.db': expected a gradkern history, .*left as it is"):
        GradMonitor(small_model(), None, tmp_path)
    assert file.read_bytes() == before
    assert sorted(f.name for f in tmp_path.iterdir()) == [".lock", file.name]


def test_a_foreign_database_with_a_wal_is_left_byte_for_byte(tmp_path):
    foreign = sqlite3.connect(tmp_path / store.DATABASE)
    foreign.execute("PRAGMA journal_mode=WAL")
    foreign.execute("CREATE TABLE t (x)")
    names = (store.DATABASE, store.DATABASE + "-wal")
    run = tmp_path / "run"  # what a crash of the other program leaves
    run.mkdir()
    for name in names:
        (run / name).write_bytes((tmp_path / name).read_bytes())
    foreign.close()
    before = [(run / name).read_bytes() for name in names]
    with pytest.raises(HistoryError, match="got a database with other tables; it is left as it is"):
        GradMonitor(small_model(), None, run)
    assert [(run / name).read_bytes() for name in names] == before


def files(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir())


def test_a_closed_run_is_one_file_and_stays_one_when_it_is_read(tmp_path):
    for end in (7, 9):  # a writer that begins again finds it as well
        writer = HistoryWriter(tmp_path, {})
        assert writer.journal == "WAL"
        writer.write([step_row(s, [s, s], layout(2)) for s in range((writer.last_step or 0) + 1, end + 1)])
        writer.close()
        assert files(tmp_path) == [store.DATABASE]
        before = (tmp_path / store.DATABASE).read_bytes()
        with History.open(tmp_path) as history:
            assert len(history.norm) == end
        assert files(tmp_path) == [store.DATABASE] and (tmp_path / store.DATABASE).read_bytes() == before


def test_a_run_that_is_read_while_it_ends_and_begins_again(tmp_path):
    where = layout(2)
    writer = HistoryWriter(tmp_path, {})
    writer.write([step_row(1, [1, 1], where)])
    with History.open(tmp_path):
        start = time.monotonic()
        writer.close()  # cannot leave its WAL, and does not wait for that
        assert time.monotonic() - start < 2
        late = History.open(tmp_path)
    writer = HistoryWriter(tmp_path, {})
    writer.write([step_row(2, [2, 2], where)])
    assert late.refresh() == 1 and late.norm[:, 0].tolist() == [1, 2]
    late.close()
    writer.close()
    assert files(tmp_path) == [store.DATABASE]
    with History.open(tmp_path) as idle:  # a reader of one file beside a writer that goes on in a WAL
        writer = HistoryWriter(tmp_path, {})
        assert writer.journal == "WAL"
        writer.write([step_row(3, [3, 3], where)])
        assert idle.refresh() == 1 and len(idle) == 3
        writer.close()


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
    file = str(tmp_path / store.DATABASE)
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "database is locked", done
    writer._db.execute("ROLLBACK")
    writer.close()


# ---- damage and hostility ----


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(HistoryError, match=r"history.db': expected a recorded run, got no such file"):
        History.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"x", b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_another_file_is_named_and_left(tmp_path, content):
    file = tmp_path / store.DATABASE
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


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_named_not_restarted(tmp_path, part):
    write_run(tmp_path, RNG.random((200, 30), dtype=np.float32))
    file = tmp_path / store.DATABASE
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
    whole = (tmp_path / "good" / store.DATABASE).read_bytes()
    generator = np.random.default_rng(3)
    messages = []
    for _ in range(150):
        damaged = bytearray(whole)
        for at in generator.integers(0, len(whole), 40):
            damaged[at] = generator.integers(0, 256)
        (tmp_path / store.DATABASE).write_bytes(bytes(damaged))
        try:
            with History.open(tmp_path) as history:
                assert history.norm.shape == (len(history), len(history.names))
                history.summary(5), history.lr, history.phase, history.meta, history.update_ratio
        except HistoryError as error:
            messages.append(str(error).lower())
    assert len(messages) > 10
    assert all("histor" in message for message in messages)


def damage(folder: Path, *statements: str) -> None:
    connection = sqlite3.connect(folder / store.DATABASE)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("CREATE TRIGGER t AFTER INSERT ON steps BEGIN DELETE FROM vals; END", "other tables"),
        ("CREATE VIEW v AS SELECT 1", "other tables"),
        ("DROP TABLE hists", "other tables"),
        ("PRAGMA user_version = 99", "written by a newer gradkern"),
        ("PRAGMA application_id = 77", "another program's database"),
        ("UPDATE vals SET norm = x'00' WHERE seq = 2", "expected 3 numbers, got a damaged row"),
        ("UPDATE vals SET norm = 'text' WHERE seq = 2", "got a damaged row"),
        ("UPDATE vals SET nonfinite = x'ff' WHERE seq = 2", "expected pairs of integers"),
        ("UPDATE vals SET nonfinite = x'09000000000000000100000000000000'", "a row number is out of range"),
        ("DELETE FROM vals WHERE seq = 2", "row 2 of `vals` is missing"),
        ("UPDATE steps SET layout = 7", "layout 7 is missing"),
        ("UPDATE steps SET step = 'x' WHERE seq = 2", "a damaged row in `steps`"),
        ("UPDATE steps SET lr = x'01'", "steps.lr: expected reals"),
        ("UPDATE blocks SET data = x'00'", "expected packed columns"),
        ("UPDATE blocks SET idx = 3", "block 3: expected rows from 1, got a damaged block"),
        ("UPDATE layouts SET params = '[1, 2'", "expected JSON"),
        ("UPDATE layouts SET params = '{\"names\": [1]}'", "expected a list of names"),
        ('UPDATE layouts SET params = \'{"names": ["a"], "numel": [-1]}\'', "expected 1 integers as numel"),
        (
            "UPDATE layouts SET params = replace(params, 'layers.0.bias', 'layers.0.weight')",
            "a name stands twice",
        ),
        ("UPDATE layouts SET params = '" + "[" * 100000 + "'", "expected JSON"),
        ("UPDATE summaries SET body = x'00'", "expected an aggregate"),
        ("DELETE FROM summaries", "aggregates are missing"),
        ("UPDATE meta SET value = 'x'", "meta .*expected JSON"),
    ],
)
def test_hostile_content_gives_an_error(tmp_path, statement, message):
    rows = 300 if "blocks" in statement else 40
    write_run(tmp_path, RNG.random((rows, 3), dtype=np.float32))
    damage(tmp_path, statement)
    with pytest.raises(HistoryError, match=message), History.open(tmp_path) as history:
        history.norm, history.summary(2), history.lr, history.meta


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
        monkeypatch.setattr("gradkern.monitor.reader.Columns", full)
        with pytest.raises(HistoryError, match=r"history\.db': too large for this machine's memory"):
            history.norm  # noqa: B018


def test_nothing_is_unpickled():
    folder = Path(store.__file__).parent
    text = "".join(file.read_text() for file in folder.glob("*.py"))
    for word in ("pickle", "eval(", "exec(", "torch.load", "allow_pickle"):
        assert word not in text.replace("unpickled", "")


# ---- disks ----


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        HistoryError, match=r"\[GradMonitor\] run_dir '.*run': expected a folder that can be written"
    ):
        GradMonitor(small_model(), None, tmp_path / "file" / "run")


def test_a_read_only_folder_is_an_error_before_training(tmp_path, monkeypatch):
    run = tmp_path / "run"
    write_run(run, RNG.random((5, 2), dtype=np.float32))
    code = (
        f"import os, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from _loops import small_model\nfrom gradkern import GradMonitor, HistoryError\n"
        "if os.geteuid() == 0: os.setegid(65534); os.seteuid(65534)\n"
        f"try: GradMonitor(small_model(), None, {str(run)!r})\n"
        "except HistoryError as error: print(error)\n"
    )
    for directory in [run, *run.parents]:
        if directory == Path("/tmp"):
            break
        os.chmod(directory, 0o555)
    try:
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    finally:
        os.chmod(run, 0o755)
    assert "run': expected a folder that can be written, got: [Errno 13] Permission denied" in out.stdout, out


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(recorder, "RETRY", 0.05)
    monkeypatch.setattr(recorder, "RETRY_MOST", 0.1)
    monkeypatch.setattr(recorder, "PATIENCE", 0.1)


def fill_disk(monitor: GradMonitor, full: bool) -> None:
    """A database that may not grow gives SQLite's own "database or disk is full"."""
    database = monitor._recorder._writer._db
    pages = database.execute("PRAGMA page_count").fetchone()[0] if full else 1 << 30
    database.execute(f"PRAGMA max_page_count={pages}")


def test_a_full_disk_is_warned_of_and_training_goes_on(tmp_path, quick):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradMonitor(model, optimizer, tmp_path, update_every=0) as monitor:
        train(model, monitor, optimizer, 10)
        assert monitor.flush()
        fill_disk(monitor, True)
        with pytest.warns(RuntimeWarning, match=r"history\.db': database or disk is full\. Training goes on"):
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
    monitor._recorder._limit = 64 * 1024
    monitor.record(stats)
    assert monitor.flush()
    fill_disk(monitor, True)
    with pytest.warns(RuntimeWarning) as warned:
        for _ in range(20):
            for _ in range(100):
                monitor.record(stats)
            monitor.flush()
        held = len(monitor._recorder._rows) + len(monitor._recorder._queue)
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
        monitor._recorder._limit = 64 * 1024
        hold = threading.Event()
        real = monitor._recorder._writer.write
        monkeypatch.setattr(monitor._recorder._writer, "write", lambda rows: (hold.wait(30), real(rows)))
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


# ---- file systems ----

MOUNTS = """
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:30 / /home rw - nfs4 server:/home rw
31 30 8:2 / /home/local\\040disk rw - xfs /dev/sdb rw
32 22 0:31 / /scratch rw - lustre mgs:/scratch rw
33 22 0:32 / /cloud rw - fuse.gcsfuse bucket rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "journal"),
    [
        ("/data/run", "ext4", "WAL"),
        ("/home/someone/run", "nfs4", "TRUNCATE"),
        ("/homes/run", "ext4", "WAL"),
        ("/home/local disk/run", "xfs", "WAL"),
        ("/scratch", "lustre", "TRUNCATE"),
        ("/cloud/a/b", "fuse.gcsfuse", "TRUNCATE"),
    ],
)
def test_network_file_systems_get_another_journal(path, kind, journal):
    assert file_systems.file_system(path, MOUNTS) == kind
    assert file_systems.journal_for(path, MOUNTS) == journal


def test_the_journal_in_use_is_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(file_systems, "file_system", lambda *_: "nfs4")
    with GradMonitor(small_model(), None, tmp_path) as monitor:
        assert monitor.history().meta["journal"] == "TRUNCATE"
        assert not list(tmp_path.glob("*-wal"))
