"""Megatron-core's training, two ranks: data and tensor parallelism, its sharded optimizer, bf16 and fp16."""

from __future__ import annotations

import json

import numpy as np
import pytest

import gradkern
from tests.integrations.installed import needed, run_ranks

needed("megatron.core")
pytestmark = pytest.mark.timeout(600)  # ranks share the cores with the other tests

CASES = ["dp", "tp", "shards", "bf16", "bf16-shards", "fp16"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mcore")
    run_ranks("mcore", folder, 2, *CASES, "overflow")
    return folder


@pytest.mark.parametrize("case", CASES)
def test_training(runs, case):
    told = [json.loads((runs / f"{case}.{rank}.json").read_text()) for rank in range(2)]
    assert max(entry["difference"] for entry in told) == 0  # recording changes nothing
    history = gradkern.History.open(runs / case)
    assert history.names == tuple(told[0]["names"])
    assert history.steps.tolist() == [1, 2, 3]
    # The sharded optimizer's gradients are those of the other one, which are whole on every rank.
    whole = json.loads((runs / f"{'bf16' if case == 'bf16-shards' else 'dp'}.0.json").read_text())
    norms = told[0]["norms"] or whole["norms"]
    np.testing.assert_allclose(history.norm, norms, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(history.total_norm, np.linalg.norm(norms, axis=1), rtol=1e-5)
    np.testing.assert_allclose(history.total_norm, told[0]["totals"], rtol=1e-5)
    assert set(history.phase) == {"before_clip"} and history.clipped.all()
    assert history.threshold.tolist() == [0.5] * 3 and not history.skipped.any()
    np.testing.assert_allclose(history.lr_groups[:, 0], [0.05, 0.025, 0.05 / 3])
    np.testing.assert_allclose(history.loss, told[0]["losses"], rtol=1e-6)
    assert history.facts["optimizers"][0]["class"] == "AdamW"


def test_steps_that_the_loss_scale_skips(runs):
    told = json.loads((runs / "overflow.0.json").read_text())
    assert told["difference"] == 0 and told["totals"] == [None] * 3
    history = gradkern.History.open(runs / "overflow")
    assert history.skipped.tolist() == [True] * 3
    assert (history.nonfinite.sum(axis=1) > 0).all() and not np.isfinite(history.total_norm).any()
