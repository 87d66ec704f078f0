"""Files of every version of the format are read and continued."""

from __future__ import annotations

import lzma
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from gradkern import History, HistoryError
from gradkern.history import format, schema
from gradkern.history.layout import Layout
from gradkern.history.noted import Event
from gradkern.history.writer import HistoryWriter
from tests.history import golden_run as golden


@pytest.fixture(params=sorted(schema.VERSIONS))
def version(request: pytest.FixtureRequest) -> int:
    return request.param


def unpack(version: int, folder: Path) -> Path:
    packed = (golden.FOLDER / f"version-{version}.db.xz").read_bytes()
    (folder / format.DATABASE).write_bytes(lzma.decompress(packed))
    return folder


@pytest.fixture
def run(tmp_path: Path, version: int) -> Path:
    return unpack(version, tmp_path)


def version_of(run: Path) -> int:
    connection = sqlite3.connect(run / format.DATABASE)
    try:
        return connection.execute("PRAGMA user_version").fetchone()[0]
    finally:
        connection.close()


def tables_of(run: Path) -> dict[str, str]:
    connection = sqlite3.connect(run / format.DATABASE)
    try:
        return dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
    finally:
        connection.close()


def assert_first_version(history: History, steps: int) -> None:
    """All that version 1 holds."""
    rows = np.arange(1, steps + 1)
    n = rows % 5 + 1
    assert history.names == golden.NAMES and history.params["a.bias"]["shape"] == [2]
    np.testing.assert_array_equal(history.steps, rows)
    np.testing.assert_array_equal(history.total_norm, n)
    np.testing.assert_array_equal(history.norm[:, 0], n)
    np.testing.assert_array_equal(history.max_abs[:, 1], 2 * n)
    np.testing.assert_array_equal(history.has_grad[:, 2], n % 2 == 0)
    np.testing.assert_array_equal(history.clip_coef, np.where(n % 3 == 0, 0.5, 1.0))
    np.testing.assert_array_equal(history.zeros[:, 1], n % 2)
    np.testing.assert_array_equal(history.nonfinite[:, 1], rows == 7)
    np.testing.assert_array_equal(history.skipped, rows == 7)
    np.testing.assert_array_equal(history.lr_groups, np.tile([0.1, 0.2], (steps, 1)))
    np.testing.assert_array_equal(history.loss_scale, 4.0)
    assert [branch.replaced for branch in history.branches] == [10]
    assert history.update_steps.tolist() == [golden.STEPS] == history.histogram_steps.tolist()
    np.testing.assert_allclose(history.update_ratio[0], [0.1, 0.2, 0.3])
    assert history.histogram.sum() == 2 and (history.underflow["bf16"] == 0.5).all()
    assert len(history.summary(20)) <= 20 and history.summary(20).rows.sum() == steps
    np.testing.assert_allclose(history.summary(steps).total_norm, n)


def read_everything(history: History) -> list[object]:
    names = "groups", "loss", "extra", "events", "facts", "zeros", "ever_nonzero", "factor"
    return [getattr(history, name) for name in names]


def test_what_version_1_holds(run):
    before = (run / format.DATABASE).read_bytes()
    with History.open(run) as history:
        assert_first_version(history, golden.STEPS)
    assert (run / format.DATABASE).read_bytes() == before


def test_what_version_2_holds(run, version):
    with History.open(run) as history:
        if version == 1:
            assert not (history.extra or history.groups or history.events or history.facts)
            assert np.isnan(history.threshold).all() and np.isnan(history.ever_nonzero).all()
            assert history.factor is None and history.loss[-1] == history.loss[4]
            assert np.isfinite(history.max_norm).any()  # deduced
            return
        assert (history.threshold == 2).all() and (history.max_norm == 2).all()
        assert history.factor[8].tolist() == [1, 0.5, 1] and (history.factor[0] == history.clip_coef[0]).all()
        even = history.steps % 2 == 0
        logits = history.extra["attn/max_logit"]
        np.testing.assert_array_equal(logits[even], history.steps[even] / 4)
        assert np.isnan(logits[~even]).all() and history.extra["eval/loss"][-1] == 7
        assert set(history.extra) == {"attn/max_logit", "loss/G", "eval/loss"}
        assert history.loss[-1] == 0.125 and history.loss[-2] == 1 / 5
        assert (history.groups["rest"].factor == 0.5).all() and (history.groups["muon"].total_norm == 4).all()
        assert np.isnan(history.groups["muon"].threshold).all()
        data = {"kind": "vanishing_gradient", "layers": ["a.weight"]}
        assert history.events == [Event(275, "finding", data, 1000.0)]
        assert history.facts == {"modules": {"a": "Linear", "b": "Linear"}, "loss_scale": True}
        np.testing.assert_array_equal(history.ever_nonzero, [1, 0.5, np.nan])


def test_a_writer_goes_on_and_leaves_the_current_version(run):
    layout = Layout(golden.NAMES, np.array([6, 2, 4]), np.arange(3), golden.DETAILS)
    writer = HistoryWriter(run, {})
    assert writer.last_step == golden.STEPS
    more = range(golden.STEPS + 1, 601)
    writer.write([golden.step_row(s, layout, extra={"x": float(s)}) for s in more])
    writer.close()
    assert version_of(run) == schema.VERSION and tables_of(run) == schema.SCHEMA
    with History.open(run) as history:
        assert_first_version(history, 600)
        np.testing.assert_array_equal(history.extra["x"][300:], list(more))
        blocks = history.connection.execute("SELECT count(*) FROM blocks").fetchone()[0]
    assert blocks == 610 // 256  # ten rows were replaced


def test_the_golden_file_is_what_the_current_code_writes(tmp_path):
    golden.write(tmp_path)
    with History.open(tmp_path) as history:
        assert_first_version(history, golden.STEPS)
        assert history.extra["attn/max_logit"][1] == 0.5


def test_unknown_tables_are_left_alone(run):
    connection = sqlite3.connect(run / format.DATABASE)
    connection.execute("CREATE TABLE later (x)")
    connection.execute("INSERT INTO later VALUES (1)")
    connection.commit()
    connection.close()
    with History.open(run) as history:
        assert len(history) == golden.STEPS
    HistoryWriter(run, {}).close()
    assert "later" in tables_of(run)


@pytest.mark.parametrize("table", sorted(schema.ADDITIONS))
def test_an_added_table_that_is_not_there_is_empty(tmp_path, table):
    unpack(2, tmp_path)
    connection = sqlite3.connect(tmp_path / format.DATABASE)
    connection.execute(f"DROP TABLE {table}")
    connection.commit()
    connection.close()
    if table != "name_lists":  # what refers to it is damaged then
        with History.open(tmp_path) as history:
            assert len(history) == golden.STEPS
            read_everything(history)
    HistoryWriter(tmp_path, {}).close()
    assert tables_of(tmp_path) == schema.SCHEMA


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("CREATE VIRTUAL TABLE later USING fts5(x)", "other tables"),
        ("CREATE INDEX i ON steps (step)", "other tables"),
        ("PRAGMA user_version = 0", "other tables"),
        ("UPDATE name_lists SET names = '[1]'", "name_lists 1: damaged: expected a list of names"),
        (
            "UPDATE extras SET data = x'00' WHERE seq = 2",
            "extras: damaged: expected numbers of a list of names",
        ),
        (
            "UPDATE groups SET names = 77 WHERE seq = 2",
            "groups: damaged: expected numbers of a list of names",
        ),
        ("UPDATE amendments SET data = 'x'", "amendments: damaged: expected numbers of a list of names"),
        ("UPDATE events SET data = '[1]'", "event of step 275: damaged: expected an object"),
        ("UPDATE facts SET value = '['", "fact 'modules': damaged: expected JSON"),
        ("UPDATE looks SET zeros = x'00'", "looks: damaged: expected a count for each parameter"),
        ("UPDATE looks SET nonzero = x'00'", "looks: damaged: expected 3 numbers"),
        ("UPDATE vals SET factor = x'00' WHERE seq = 9", "damaged: expected 3 numbers"),
    ],
)
def test_hostile_content_of_version_2(tmp_path, statement, message):
    unpack(2, tmp_path)
    connection = sqlite3.connect(tmp_path / format.DATABASE)
    connection.execute(statement)
    connection.commit()
    connection.close()
    with pytest.raises(HistoryError, match=message), History.open(tmp_path) as history:
        read_everything(history)


def test_too_many_names_are_refused(tmp_path):
    unpack(2, tmp_path)
    connection = sqlite3.connect(tmp_path / format.DATABASE)
    names = format.write_json([str(i) for i in range(5000)])
    connection.execute("INSERT INTO name_lists VALUES (99, ?)", (names,))
    connection.commit()
    connection.close()
    with pytest.raises(HistoryError, match="at most 4096 names"), History.open(tmp_path) as history:
        assert history.extra is None


def test_a_reader_follows_events_over_a_refresh(tmp_path):
    layout = Layout(golden.NAMES, np.array([6, 2, 4]), np.arange(3), golden.DETAILS)
    writer = HistoryWriter(tmp_path, {})
    writer.write([*(golden.step_row(s, layout) for s in range(1, 11)), golden.EventRow(9, "skip", {}, 1.0)])
    with History.open(tmp_path) as history:
        assert [event.step for event in history.events] == [9]
        writer.write([golden.EventRow(10, "mine", {"a": 1}, 2.0)])
        assert [event.step for event in history.events] == [9]
        history.refresh()
        assert [event.step for event in history.events] == [9, 10]
        writer.write([golden.step_row(5, layout), golden.EventRow(5, "skip", {}, 3.0)])  # goes back
        history.refresh()
        assert [event.step for event in history.events] == [5]
    writer.close()


def test_amendments_and_events_follow_the_branch(tmp_path):
    layout = Layout(golden.NAMES, np.array([6, 2, 4]), np.arange(3), golden.DETAILS)
    writer = HistoryWriter(tmp_path, {})
    writer.write([golden.step_row(s, layout) for s in range(1, 21)])
    writer.write([golden.EventRow(15, "skip", {}, 1.0), golden.EventRow(5, "skip", {}, 1.0)])
    writer.write([golden.AmendmentRow(s, {"loss": 10.0 * s}) for s in (4, 15, 99)])
    writer.write([golden.AmendmentRow(4, {"loss": 41.0})])
    writer.write([golden.step_row(s, layout) for s in range(12, 18)])  # goes back
    writer.write([golden.AmendmentRow(s, {"loss": 11.0 * s}) for s in (3, 16)])
    writer.close()
    with History.open(tmp_path) as history:
        loss = dict(zip(history.steps.tolist(), history.loss.tolist()))
        assert [loss[s] for s in (3, 4, 15, 16)] == [33.0, 41.0, 1.0, 176.0] and len(history) == 17
        assert [event.step for event in history.events] == [5]
        assert history.summary(1).loss_max == 176.0
    with History.open(tmp_path, superseded=True) as history:
        assert history.loss[14] == 150.0 and len(history.events) == 2
