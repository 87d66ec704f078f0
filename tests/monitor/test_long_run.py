"""A run of 100,000 steps of 300 layers: its size, and what opening it takes. Run with: pytest -m slow."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from long_run import open_long_run, write_long_run

from gradkern import History


@pytest.mark.slow
def test_a_long_run_opens_at_once(tmp_path):
    write_long_run(tmp_path, 100_000)
    assert (tmp_path / "history.db").stat().st_size < 1e9
    found = open_long_run(tmp_path)
    assert found["rows"] == 100_000
    assert found["open_s"] < 2 and found["open_mib"] < 1000, found
    assert found["process_mib"] < 1000 and found["report_mb"] < 6, found


def test_a_run_written_for_measuring_is_a_run(tmp_path):
    write_long_run(tmp_path, 600, layers=6)
    with History.open(tmp_path) as history:
        assert history.steps.tolist() == list(range(1, 601)) and history.norm.shape == (600, 6)
        assert history.summary(10).rows.sum() == 600
        assert history.clipped.any() and not history.clipped.all()
