"""Only a bounded part of a long run is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gradkern.diagnosis import load
from gradkern.history import History
from tests.support import synthetic


def test_a_short_run_is_read_whole(tmp_path: Path) -> None:
    synthetic.record(tmp_path, steps=100)
    with History.open(tmp_path) as history:
        evidence = load.read_evidence(history)
        np.testing.assert_array_equal(evidence.update_steps, history.update_steps)
        np.testing.assert_array_equal(evidence.weight_norm, history.weight_norm)
        np.testing.assert_array_equal(evidence.update_ratio, history.update_ratio)
        np.testing.assert_array_equal(evidence.histogram_steps, history.histogram_steps)
        np.testing.assert_array_equal(evidence.histogram, history.histogram)


def test_of_many_looks_and_histograms_a_bounded_number_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic.record(tmp_path, steps=1000)  # 100 of each
    monkeypatch.setattr(load, "MOST_PERIODIC", 20)
    read: dict[str, int] = {}
    original = History.read_rows

    def counting(self, table, columns, ids):  # type: ignore[no-untyped-def]
        read[table] = read.get(table, 0) + len(ids)
        return original(self, table, columns, ids)

    monkeypatch.setattr(History, "read_rows", counting)
    with History.open(tmp_path) as history:
        evidence = load.read_evidence(history)
    assert 0 < read["weights"] <= 20 and 0 < read["hists"] <= load.MOST_HISTOGRAMS
    assert evidence.update_steps[0] == evidence.histogram_steps[0] == 10
    assert evidence.update_steps[-1] == evidence.histogram_steps[-1] == 1000
    for step, norms in zip(evidence.update_steps.tolist(), evidence.update_ratio):
        np.testing.assert_array_equal(norms, synthetic.norms_at(step, 4) * np.float32(1e-3))
