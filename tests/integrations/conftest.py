"""Shared by the tests of the frameworks; each file skips itself where its framework is not installed."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

import gradkern


@pytest.fixture(autouse=True)
def _unpatched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield
    gradkern.unpatch_torch()


@pytest.fixture
def run(tmp_path):
    """The folder of the run."""
    return tmp_path / "run"


class Measured(list):
    """float64 norms of every parameter, taken where torch's clip is called; without gradkern.

    `losses` has what each call of `backward` differentiates.
    """

    def __init__(self):
        super().__init__()
        self.losses = []

    def add(self, parameters):
        grads = [p.grad for p in parameters]
        self.append([0.0 if g is None else g.double().square().sum().sqrt().item() for g in grads])

    @contextlib.contextmanager
    def watching(self):
        inner, backward = torch.nn.utils.clip_grad_norm_, torch.Tensor.backward

        def noted(loss, *args, **kwargs):
            self.losses.append(loss.item())
            return backward(loss, *args, **kwargs)

        def clip(parameters, *args, **kwargs):
            parameters = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
            self.add(parameters)
            return inner(parameters, *args, **kwargs)

        torch.nn.utils.clip_grad_norm_, torch.Tensor.backward = clip, noted
        try:
            yield self
        finally:
            torch.nn.utils.clip_grad_norm_, torch.Tensor.backward = inner, backward

    @property
    def totals(self):
        return [float(np.linalg.norm(row)) for row in self]

    def losses_of_steps(self, micro=1):
        """The losses of each step, summed over its micro-batches."""
        return np.reshape(self.losses, (-1, micro)).sum(axis=1)


@pytest.fixture
def measured():
    return Measured()


@pytest.fixture
def assert_same_weights():
    """Asserts that the weights of two runs agree except for the last bits: gradkern computes norms in
    float64."""

    def check(one, two, rtol=1e-5, atol=1e-7):
        pairs = list(zip(one.parameters(), two.parameters(), strict=True))
        assert pairs
        for mine, theirs in pairs:
            torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol)

    return check
