"""tests/support/policy_checks.py on a GPU, without a synchronisation after the first step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

import gradkern
from gradkern.policies import AGC
from tests.support import policy_checks as checks

DEVICE = "cuda"


@contextlib.contextmanager
def no_synchronisation() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


QUIET = no_synchronisation


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


def test_agc_of_a_repeated_gradient() -> None:
    params = [torch.nn.Parameter(torch.ones(4, 3, device=DEVICE)) for _ in range(3)]
    params[0].grad = params[2].grad = torch.full((4, 3), 5.0, device=DEVICE)
    params[1].grad = torch.full((4, 3), 1e-3, device=DEVICE)
    clipper = gradkern.GradClipper(params, policy=AGC(0.01))
    clipper.clip_()
    params[0].grad.fill_(5.0)
    with QUIET():
        stats = clipper.clip_()
    torch.testing.assert_close(params[0].grad.norm(dim=1), torch.full((4,), 0.01 * 3**0.5, device=DEVICE))
    assert stats.norm[0] == stats.norm[2]


@pytest.mark.parametrize("dtype", checks.DTYPES, ids=str)
def test_value(dtype: torch.dtype) -> None:
    checks.check_value(DEVICE, dtype, QUIET)


def test_raise_later() -> None:
    checks.check_raise_later(DEVICE, torch.cuda.synchronize)


def test_skipped_outliers() -> None:
    checks.check_skipped_outliers(DEVICE, QUIET)


def test_policies_on_replay() -> None:
    checks.check_policies_on_replay(DEVICE)


def test_raise_later_on_replay() -> None:
    checks.check_raise_later_on_replay(DEVICE)
