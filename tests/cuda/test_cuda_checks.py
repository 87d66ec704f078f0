"""tests/support/device_checks.py on a GPU."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support import device_checks as checks
from tests.support import reference as ref


@pytest.mark.parametrize("p", [2.0, 1.0, 3.0])
@pytest.mark.parametrize("dtype", ref.REAL, ids=str)
@pytest.mark.parametrize("name", checks.SUMS)
def test_adversarial_sums(name: str, dtype: torch.dtype, p: float) -> None:
    checks.check_adversarial_sum("cuda", name, dtype, p)


@pytest.mark.parametrize("dtype", ref.REAL, ids=str)
@pytest.mark.parametrize("name", checks.SUMS)
def test_adversarial_lists(name: str, dtype: torch.dtype) -> None:
    checks.check_adversarial_list("cuda", name, dtype)


@pytest.mark.parametrize("factor", [2.0**-13, 4.0])
@pytest.mark.parametrize("p", [2.0, 1.0, 0.0, 3.0, math.inf, -math.inf])
def test_inv_scale(p: float, factor: float) -> None:
    checks.check_inv_scale("cuda", p, factor)


@pytest.mark.parametrize("factor", [0.3, 1.7, 1e-3])
@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
def test_scaling_by_a_tensor(dtype: torch.dtype, factor: float) -> None:
    checks.check_scaling_by_a_tensor("cuda", dtype, factor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_gradscaler(dtype: torch.dtype) -> None:
    checks.check_gradscaler("cuda", dtype)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_fold(kind: type[torch.optim.Optimizer]) -> None:
    checks.check_fold("cuda", kind)


@pytest.mark.parametrize("p", [2.0, 1.0, 3.0, math.inf])
def test_by_layer(p: float) -> None:
    checks.check_by_layer("cuda", p)


@contextlib.contextmanager
def no_synchronisation() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_monitor(tmp_path: Path) -> None:
    checks.check_monitor("cuda", tmp_path, no_synchronisation)


@pytest.mark.parametrize("policy", ["propagate", "zero", "skip"])
def test_clipper_on_replay(policy: str) -> None:
    checks.check_clipper_on_replay("cuda", policy)


def test_repeated_parameter_in_an_error() -> None:
    checks.check_repeated_parameter_in_an_error("cuda")
