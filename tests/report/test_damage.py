"""Damaged runs: an error names the file, for any damage."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from gradkern import GradMonitor, History, HistoryError
from gradkern.cli.main import main
from gradkern.history.schema import SCHEMA
from tests.support.synthetic import record

Use = Callable[[Path], None]
VALUES = (
    "text", "", None, -1, 2**62, -(2**63), 1e308, float("inf"), b"", b"\xff" * 16, b"\0" * 8, "9" * 400,
    "[]", "NaN", "null", '{"names":["\\ud800"],"numel":[1],"first":[0]}',
)  # fmt: skip


def everything(run: Path) -> None:
    """All methods and attributes of a History."""
    with History.open(run) as history:
        for name in dir(History):
            if isinstance(getattr(History, name), property):
                getattr(history, name)
        history.summary(7), history.summary(7, depth=1), history.layers(1), history.refresh()
        repr(history), history._repr_html_()


def table(run: Path) -> None:
    with History.open(run) as history:
        history.to_csv(run / "table.csv")


def resumed(run: Path) -> None:
    model = torch.nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    try:
        with GradMonitor(model, None, run) as monitor:
            monitor.record()
    except ValueError as error:  # another norm_type, as it looks
        raise HistoryError(str(error)) from error


def command(*arguments: str) -> Use:
    def run_it(run: Path) -> None:
        assert main([arguments[0], str(run), *arguments[1:]]) in (0, 2)

    return run_it


USES = (everything, table, command("report"), command("watch", "--once"), resumed)


def cells() -> Iterator[tuple[str, str]]:
    for name in SCHEMA:
        for column in SCHEMA[name].split("(", 1)[1].split(","):
            if column.split()[0] not in ("PRIMARY", "KEY", "idx))"):
                yield name, column.split()[0]


def use(run: Path, what: object, capsys: pytest.CaptureFixture[str], uses: Sequence[Use] = USES) -> int:
    """Use all of it. Returns the number of errors."""
    refused = 0
    for one in uses:
        try:
            one(run)
        except HistoryError as error:
            refused += 1
            unnamed = "" if "history.db" in str(error) else str(error)
            if unnamed:
                raise AssertionError((what, unnamed)) from error
        except Exception as error:
            raise AssertionError((what, one, error)) from error
        said = capsys.readouterr().err
        assert not said or "history.db" in said, (what, said)
        refused += bool(said)
    return refused


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # from the monitor that continues such a file
def test_a_cell_that_holds_something_else(tmp_path, capsys):
    record(tmp_path / "good", steps=300)
    whole = (tmp_path / "good" / "history.db").read_bytes()
    run, refused = tmp_path / "run", 0
    run.mkdir()
    for number, (name, column) in enumerate(cells()):
        for old in run.iterdir():
            old.unlink()
        (run / "history.db").write_bytes(whole)
        database = sqlite3.connect(run / "history.db")
        value = VALUES[number % len(VALUES)]
        try:
            key = "idx" if name == "summaries" else "rowid"
            where = f"WHERE {key} = (SELECT {('min', 'max')[number % 2]}({key}) FROM {name})"
            database.execute(f"UPDATE {name} SET {column} = ? {where}", (value,))
        except sqlite3.Error:  # SQLite itself refuses it
            continue
        finally:
            database.commit()
            database.close()
        uses = USES[0], USES[1 + number % 4]
        refused += use(run, (name, column, value), capsys, uses) > 0
    assert refused > 15


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("damage", ["flips", "end"])
def test_bytes_that_are_others_or_missing(tmp_path, capsys, damage):
    record(tmp_path, steps=60)
    whole = (tmp_path / "history.db").read_bytes()
    generator, refused = random.Random(damage), 0
    used = [i for i, byte in enumerate(whole) if byte]  # most of a small database is empty space
    for number in range(12):
        for old in tmp_path.iterdir():
            old.unlink()
        content = bytearray(whole)
        if damage == "end":
            content = content[: generator.randrange(len(whole))]
        for _ in range(0 if damage == "end" else 3 ** (number % 5)):
            content[generator.choice(used)] = generator.randrange(256)
        (tmp_path / "history.db").write_bytes(bytes(content))
        refused += use(tmp_path, number, capsys) > 0
    assert refused >= (11 if damage == "end" else 3)


def test_numbers_out_of_range_in_blobs(tmp_path, capsys):
    record(tmp_path, steps=60)
    database = sqlite3.connect(tmp_path / "history.db")
    database.execute("UPDATE vals SET norm = ?", (np.full(4, np.inf, "<f4").tobytes(),))
    database.execute("UPDATE weights SET ratio = ?", (np.full(4, -np.inf, "<f4").tobytes(),))
    database.execute("UPDATE hists SET counts = ?", (np.array([[0], [2**63 - 1]], "<i8").tobytes(),))
    database.commit()
    database.close()
    assert use(tmp_path, "blobs", capsys) == 0
