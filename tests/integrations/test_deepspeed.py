"""DeepSpeed's engine, ZeRO stages 0 to 3, two ranks; against the same training in float64."""

from __future__ import annotations

import json

import numpy as np
import pytest

import gradkern
from tests.integrations.installed import needed, run_ranks

needed("deepspeed")
pytestmark = pytest.mark.timeout(600)  # ranks share the cores with the other tests

CASES = ["0:fp32", "1:fp32", "2:fp32", "3:fp32", "0:bf16", "2:bf16", "2:fp16", "3:fp16", "2:fp32:resumed"]
NAMES = ("0.weight", "0.bias", "2.weight", "2.bias")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero")
    run_ranks("zero", folder, 2, *CASES)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_engine(runs, case):
    told = [json.loads((runs / f"{case}.{rank}.json").read_text()) for rank in range(2)]
    assert max(entry["difference"] for entry in told) == 0  # recording changes nothing
    history = gradkern.History.open(runs / case)
    assert history.names == NAMES
    assert history.steps.tolist() == [1, 2, 3, 4]
    norms = np.array(told[0]["norms"])
    tolerance = {"fp32": 1e-5, "bf16": 0.05, "fp16": 0.01}[case.split(":")[1]]
    np.testing.assert_allclose(history.norm, norms, rtol=tolerance)
    np.testing.assert_allclose(history.total_norm, np.linalg.norm(norms, axis=1), rtol=tolerance)
    assert set(history.phase) == {"before_clip"}
    assert history.clipped.tolist() == (history.total_norm > 0.5).tolist() and history.clipped.any()
    assert history.threshold.tolist() == [0.5] * 4
    np.testing.assert_allclose(history.lr, [0.1, 0.05, 0.025, 0.0125])
    losses = np.reshape(told[0]["losses"], (4, 2)).mean(axis=1)
    np.testing.assert_allclose(history.loss, losses, rtol=1e-3)
    assert history.facts["optimizers"][0]["class"] == "SGD"


FRAMEWORKS = ["transformers", "lightning"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("callbacks")
    run_ranks("zero_callbacks", folder, *FRAMEWORKS)
    return folder


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_callbacks_of_frameworks_that_train_with_it(trained, name):
    told = json.loads((trained / f"{name}.json").read_text())
    assert told["difference"] == 0
    history = gradkern.History.open(trained / name)
    assert history.names == tuple(told["names"])
    assert history.steps.tolist() == [1, 2, 3]
    np.testing.assert_allclose(history.norm, told["norms"], rtol=1e-5)
    np.testing.assert_allclose(history.total_norm, np.linalg.norm(told["norms"], axis=1), rtol=1e-5)
    np.testing.assert_allclose(history.loss, told["losses"], rtol=1e-4)
    assert set(history.phase) == {"before_clip"} and history.threshold.tolist() == [0.5] * 3
