"""The sink for Trackio against the real package, read back with its own reader."""

from __future__ import annotations

import pytest

from tests.integrations.installed import framework
from tests.sinks import test_sinks


@pytest.fixture
def trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    return framework("trackio")


def test_trackio(tmp_path, trackio):
    from trackio.sqlite_storage import SQLiteStorage

    from gradkern.sinks import TrackioSink

    quiet = {"auto_log_cpu": False, "auto_log_gpu": False, "embed": False}
    stats = test_sinks.run(tmp_path, [TrackioSink(init=quiet, heatmap_every=10)])
    rows = SQLiteStorage.get_logs("gradkern", "run")
    norms = {row["step"]: row["grad_norm"] for row in rows if "grad_norm" in row}
    assert norms == {i + 1: pytest.approx(s.total_norm.item()) for i, s in enumerate(stats)}
    keys = set().union(*rows)
    assert {"clip/coef", "grad_rms/0.weight", "gradkern/loss", "grad_rms_heatmap"} <= keys
    test_sinks.happen(TrackioSink(init=quiet), tmp_path / "sick")
    alerts = SQLiteStorage.get_alerts("gradkern", "sick")
    assert sorted((a["title"], a["level"], a["step"]) for a in alerts) == [
        ("rolled back", "warn", 24), ("vanishing gradient", "error", 20)
    ]  # fmt: skip
