"""The table for other programs agrees with the history."""

from __future__ import annotations

import csv
import subprocess
import sys

import numpy as np
import pytest

from gradkern import History
from gradkern.history import export
from gradkern.history.export import COLUMNS
from gradkern.history.writer import HistoryWriter
from tests.support.loops import layout, step_row

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")


@pytest.fixture
def history(tmp_path):
    where = layout(3)
    where.names = ("a.weight", "=cmd()", 'b,"c"')
    writer = HistoryWriter(tmp_path / "run", {})
    rows = [
        step_row(1, [1.0, 2.0, -1.0], where, loss=0.5, lr=(0.1,), clip_coef=0.25, extra={"loss/G": 0.75}),
        step_row(2, [np.nan, 4.0, 5.0], where, nonfinite=np.array([7, 0, 0]), zeros=np.array([1, 0, 2])),
    ]
    writer.write(rows)
    writer.close()
    with History.open(tmp_path / "run") as opened:
        yield opened


EXPECTED = [
    (1, "a.weight", 1.0, 0),
    (1, "=cmd()", 2.0, 0),
    (2, "a.weight", None, 7),
    (2, "=cmd()", 4.0, 0),
    (2, 'b,"c"', 5.0, 0),
]


NORMS = [1.0, 2.0, np.nan, 4.0, 5.0]


def test_csv(history, tmp_path):
    history.to_csv(tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as opened:
        lines = list(csv.DictReader(opened))
    assert tuple(lines[0]) == (*COLUMNS, "extra/loss/G")
    found = [(int(x["step"]), x["param"].lstrip("'"), float(x["norm"]), int(x["nonfinite"])) for x in lines]
    assert [f[:2] + f[3:] for f in found] == [e[:2] + e[3:] for e in EXPECTED]
    assert [f[2] for f in found] == pytest.approx(NORMS, nan_ok=True)
    assert lines[1]["param"] == "'=cmd()"  # no formula for a spreadsheet
    assert lines[0]["phase"] == "before_clip" and float(lines[0]["clip_coef"]) == 0.25
    assert lines[0]["zeros"] == "-1" and float(lines[1]["rms"]) == pytest.approx(0.2)
    assert [float(x["extra/loss/G"]) for x in lines] == pytest.approx([0.75] * 2 + [np.nan] * 3, nan_ok=True)


def test_arrow_is_the_table_and_a_stream(history):
    table = history.to_arrow()
    assert table.schema.names == [*COLUMNS, "extra/loss/G"]
    assert table["param"].to_pylist() == [e[1] for e in EXPECTED]
    assert table["step"].to_pylist() == [e[0] for e in EXPECTED]
    assert str(pyarrow.table(history).to_pydict()) == str(
        table.to_pydict()
    )  # by __arrow_c_stream__, as polars


def test_pieces_make_the_same_table(history, monkeypatch):
    whole = history.to_arrow()
    monkeypatch.setattr(export, "_PIECE", 1)
    pieces = history.to_arrow()
    assert pieces["param"].num_chunks == 2 and str(pieces.to_pydict()) == str(whole.to_pydict())


def test_pandas(history):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table = history.to_pandas()
    assert isinstance(table, pandas.DataFrame) and tuple(table.columns) == (*COLUMNS, "extra/loss/G")
    assert table["param"].tolist() == [e[1] for e in EXPECTED]
    assert table["nonfinite"].tolist() == [0, 0, 7, 0, 0]
    assert table["norm"].tolist() == pytest.approx(NORMS, nan_ok=True)
    assert table["zeros"].tolist() == [-1, -1, 1, 0, 2] and table["skipped"].tolist() == [False] * 5


def test_parquet(history, tmp_path):
    history.to_parquet(tmp_path / "table.parquet")
    table = parquet.read_table(tmp_path / "table.parquet").to_pydict()
    assert tuple(table)[:-1] == COLUMNS and table["param"] == [e[1] for e in EXPECTED]
    assert table["norm"] == pytest.approx(NORMS, nan_ok=True)
    assert table["lr"] == pytest.approx([0.1, 0.1, np.nan, np.nan, np.nan], nan_ok=True)


def test_a_run_without_steps_is_an_empty_table(tmp_path):
    HistoryWriter(tmp_path / "run", {}).close()
    with History.open(tmp_path / "run") as history:
        history.to_csv(tmp_path / "table.csv")
        assert history.to_arrow().num_rows == 0 and history.to_pandas().shape == (0, len(COLUMNS))
        assert (tmp_path / "table.csv").read_text().count("\n") == 1


def test_a_missing_package_names_the_extra(history):
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        f"from gradkern import History\nhistory = History.open({str(history.path)!r})\n"
        "for method, file in ((history.to_arrow, ()), (history.to_pandas, ()), (history.to_csv, ('x',))):\n"
        "    try: method(*file)\n"
        "    except ImportError as error: print(error)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    lines = out.stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert "needs the package pyarrow, which is not installed: pip install gradkern[export]" in line


def test_a_name_that_no_file_can_hold_becomes_an_escape(tmp_path):
    """Half a pair of surrogates: JSON knows it, UTF-8 does not."""
    where = layout(1)
    where.names = ("a\ud800b",)
    writer = HistoryWriter(tmp_path / "run", {})
    writer.write([step_row(1, [1.0], where)])
    writer.close()
    with History.open(tmp_path / "run") as history:
        assert history.names == ("a\ud800b",)
        history.to_csv(tmp_path / "table.csv")
        assert "a\\ud800b" in (tmp_path / "table.csv").read_text(encoding="utf-8")
        history.to_parquet(tmp_path / "table.parquet")
        table = parquet.read_table(tmp_path / "table.parquet").to_pydict()
        assert table["param"] == ["a\\ud800b"]
