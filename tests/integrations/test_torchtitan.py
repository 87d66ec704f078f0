"""torchtitan's Trainer on four ranks: FSDP2, with tensor, pipeline and expert parallelism, bf16, resumed."""

from __future__ import annotations

import json

import numpy as np
import pytest

import gradkern
from tests.integrations.installed import needed, run_ranks

needed("torchtitan")
pytestmark = pytest.mark.timeout(600)  # ranks share the cores with the other tests

MODES = ["fsdp", "tp", "pp", "ep", "bf16", "resumed"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("titan")
    run_ranks("titan", folder, 4, *MODES, "unchanged")
    return folder


@pytest.mark.parametrize("mode", MODES)
def test_trainer(runs, mode):
    told = [json.loads((runs / f"{mode}.{rank}.json").read_text()) for rank in range(4)]
    assert max(entry["difference"] for entry in told) < 1e-5
    for rank, entry in enumerate(told) if mode == "pp" else [(0, told[0])]:
        run = runs / mode / "run"
        history = gradkern.History.open(run / f"rank{rank}" if mode == "pp" else run)
        assert history.names == tuple(entry["names"])
        assert history.steps.tolist() == [1, 2, 3]
        np.testing.assert_allclose(history.norm, [s["norms"] for s in entry["steps"]], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(history.total_norm, [s["total"] for s in entry["steps"]], rtol=1e-5)
        np.testing.assert_allclose(history.total_norm, [s["returned"] for s in entry["steps"]], rtol=1e-4)
        assert set(history.phase) == {"before_clip"} and history.clipped.all()
        np.testing.assert_allclose(history.lr, [s["lr"] for s in entry["steps"]], rtol=1e-6)
        assert history.lr[0] < history.lr[1]  # warms up
    last = history if mode == "pp" else gradkern.History.open(runs / mode / "run")
    entry = told[-1] if mode == "pp" else told[0]
    assert last.has_loss.tolist() == [True, True, False]  # torchtitan's log_freq is 2
    assert all(finding.severity for finding in gradkern.diagnose(last))
    np.testing.assert_allclose(last.loss[:2], [entry["losses"]["1"], entry["losses"]["2"]], rtol=1e-4)


def test_under_gradkern_run(runs):
    """`gradkern run … -m torchtitan.train`, without a line of code."""
    told = [json.loads((runs / f"unchanged.{rank}.json").read_text()) for rank in range(4)]
    assert max(entry["difference"] for entry in told) < 1e-5
    history = gradkern.History.open(runs / "unchanged" / "run")
    assert history.names == tuple(told[0]["names"]) and history.steps.tolist() == [1, 2, 3]
    np.testing.assert_allclose(history.norm, [s["norms"] for s in told[0]["steps"]], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(history.total_norm, [s["total"] for s in told[0]["steps"]], rtol=1e-5)
    assert set(history.phase) == {"before_clip"} and history.clipped.all()
    np.testing.assert_allclose(history.lr, [s["lr"] for s in told[0]["steps"]], rtol=1e-6)
    np.testing.assert_allclose(history.loss, [s["part"] for s in told[0]["steps"]], rtol=1e-4)
