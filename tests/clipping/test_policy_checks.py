"""The checks of tests/cuda/test_cuda_policies.py on the CPU."""

from __future__ import annotations

import contextlib

import pytest
import torch

from gradkern.kernels.backend import NullBackend
from tests.support import policy_checks as checks

DEVICE, QUIET = "cpu", contextlib.nullcontext


@pytest.fixture(params=["one call", "steps"], autouse=True)
def route(request, monkeypatch):
    """The route of the CPU, and that of other devices."""
    if request.param == "steps":
        monkeypatch.setattr("gradkern.clipping.one_call.C", NullBackend())


@pytest.mark.parametrize("dtype", checks.DTYPES, ids=str)
def test_groups(dtype: torch.dtype) -> None:
    checks.check_groups(DEVICE, dtype, QUIET)


@pytest.mark.parametrize("name", checks.BY_NORM)
def test_policies_with_one_factor(name: str) -> None:
    checks.check_policy_by_norm(DEVICE, name, QUIET)


def test_adagc() -> None:
    checks.check_adagc(DEVICE, QUIET)


@pytest.mark.parametrize("units", ["timm", "optax"])
@pytest.mark.parametrize("dtype", checks.DTYPES, ids=str)
def test_agc(dtype: torch.dtype, units: str) -> None:
    checks.check_agc(DEVICE, dtype, units, QUIET)


@pytest.mark.parametrize("dtype", checks.DTYPES, ids=str)
def test_value(dtype: torch.dtype) -> None:
    checks.check_value(DEVICE, dtype, QUIET)


def test_raise_later() -> None:
    checks.check_raise_later(DEVICE, lambda: None)


def test_skipped_outliers() -> None:
    checks.check_skipped_outliers(DEVICE, QUIET)


def test_policies_on_replay() -> None:
    checks.check_policies_on_replay(DEVICE)


def test_raise_later_on_replay() -> None:
    checks.check_raise_later_on_replay(DEVICE)
