"""The checks of tests/cuda/test_cuda_checks.py on the CPU."""

import contextlib
import math

import pytest
import torch

from tests.support import device_checks as checks
from tests.support import reference as ref


@pytest.mark.parametrize("name", ["0.1", "spike_then_dust", "alternating"])
def test_adversarial_sums(name):
    # Every one of them on the CPU: test_adversarial_sums.py.
    checks.check_adversarial_sum("cpu", name, torch.bfloat16, 2.0)
    checks.check_adversarial_list("cpu", name, torch.float32)


@pytest.mark.parametrize("p", [2.0, 1.0, 0.0, 3.0, math.inf, -math.inf])
def test_inv_scale(p):
    checks.check_inv_scale("cpu", p, 2.0**-13)
    checks.check_inv_scale("cpu", p, 4.0)


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
def test_scaling_by_a_tensor(dtype):
    for factor in (0.3, 1.7, 1e-3):
        checks.check_scaling_by_a_tensor("cpu", dtype, factor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_gradscaler(dtype):
    checks.check_gradscaler("cpu", dtype)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_fold(kind):
    checks.check_fold("cpu", kind)


@pytest.mark.parametrize("p", [2.0, 1.0, 3.0, math.inf])
def test_by_layer(p):
    checks.check_by_layer("cpu", p)


def test_monitor(tmp_path):
    checks.check_monitor("cpu", tmp_path, contextlib.nullcontext)


@pytest.mark.parametrize("policy", ["propagate", "zero", "skip"])
def test_clipper_on_replay(policy):
    checks.check_clipper_on_replay("cpu", policy)


def test_repeated_parameter_in_an_error():
    checks.check_repeated_parameter_in_an_error("cpu")
