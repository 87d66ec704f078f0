"""The aggregates agree with the rows."""

from __future__ import annotations

import numpy as np
import pytest

from gradkern import History
from tests.support.files import assert_summary_is_right
from tests.support.loops import write_run

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 63, 64, 65, 255, 256, 300, 1023, 1030])
@pytest.mark.parametrize("points", [1, 3, 50])
def test_summaries_agree_with_the_rows(tmp_path, rows, points):
    write_run(tmp_path, RNG.random((rows, 4), dtype=np.float32))
    with History.open(tmp_path) as history:
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
