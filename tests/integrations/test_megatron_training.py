"""Megatron-core's training, two ranks: data, tensor, pipeline and expert parallelism, its sharded optimizer,
bf16 and fp16, a resumed run."""

from __future__ import annotations

import json

import numpy as np
import pytest

import gradkern
from tests.integrations.installed import needed, run_ranks

needed("megatron.core")
pytestmark = pytest.mark.timeout(600)  # ranks share the cores with the other tests

CASES = [
    "dp", "tp", "pp", "vp", "ep", "shards", "ep-shards", "bf16", "bf16-shards", "bf16-resumed", "fp16",
]  # fmt: skip
#: Each rank has parameters of its own and records them.
ALL_RANKS = ("pp", "vp", "ep", "ep-shards")
#: The sharded optimizer has the gradients of these cases, in which every rank holds all of them.
WHOLE = {"shards": "dp", "ep-shards": "ep", "bf16-shards": "bf16"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mcore")
    run_ranks("mcore", folder, 2, *CASES, "overflow")
    return folder


def told_by(runs, case):
    return [json.loads((runs / f"{case}.{rank}.json").read_text()) for rank in range(2)]


def totals_of(case, told):
    """The total over the gradients of both ranks, in which those that both hold count once."""
    first, second = (np.square(entry["norms"]) for entry in told)
    if case in ("pp", "vp"):
        return np.sqrt(first.sum(axis=1) + second.sum(axis=1))
    return np.sqrt(first.sum(axis=1) + second[:, told[1]["of_experts"]].sum(axis=1))


@pytest.mark.parametrize("case", CASES)
def test_training(runs, case):
    told, whole = told_by(runs, case), told_by(runs, WHOLE.get(case, case))
    assert max(entry["difference"] for entry in told) == 0  # recording changes nothing
    assert any(told[0]["of_experts"]) == case.startswith("ep")
    for rank in range(2) if case in ALL_RANKS else [0]:
        run = runs / case / f"rank{rank}" if case in ALL_RANKS else runs / case
        history = gradkern.History.open(run)
        assert history.names == tuple(told[rank]["names"])
        assert history.steps.tolist() == [1, 2, 3]
        np.testing.assert_allclose(history.norm, whole[rank]["norms"], rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(history.total_norm, totals_of(case, whole), rtol=1e-5)
        np.testing.assert_allclose(history.total_norm, told[rank]["totals"], rtol=1e-5)
        assert set(history.phase) == {"before_clip"}
        assert history.clipped.tolist() == (history.total_norm > 0.5).tolist() and history.clipped.any()
        assert history.threshold.tolist() == [0.5] * 3 and not history.skipped.any()
        np.testing.assert_allclose(history.lr_groups[:, 0], [0.05, 0.025, 0.05 / 3])
        np.testing.assert_allclose(history.loss[history.has_loss], told[rank]["losses"], rtol=1e-6)
        assert history.facts["optimizers"][0]["class"] == "AdamW"
    assert len(told[1]["losses"]) == 3  # of the last stage


def test_steps_that_the_loss_scale_skips(runs):
    told = json.loads((runs / "overflow.0.json").read_text())
    assert told["difference"] == 0 and told["totals"] == [None] * 3
    history = gradkern.History.open(runs / "overflow")
    assert history.skipped.tolist() == [True] * 3
    assert (history.nonfinite.sum(axis=1) > 0).all() and not np.isfinite(history.total_norm).any()
