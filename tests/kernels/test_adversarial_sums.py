"""Sums on which naive summation fails, against the proved bound."""

from __future__ import annotations

import math

import pytest
import torch

import gradkern
from tests.support import reference as ref
from tests.support.strategies import CHUNK

N = 16 * CHUNK + 7  # about half a million elements


def constant(value):
    return lambda: torch.full((N,), value, dtype=torch.float64)


def spike_then_dust():
    x = torch.full((N,), 1e-4, dtype=torch.float64)
    x[0] = 1.0
    return x


def dust_then_spike():
    return spike_then_dust().flip(0)


def spike_in_every_chunk():
    x = torch.full((N,), 1e-5, dtype=torch.float64)
    x[::CHUNK] = 1.0
    return x


def alternating():
    return torch.where(torch.arange(N) % 2 == 0, 1e3, 1e-3).double()


def one_lane_only():
    return torch.where(torch.arange(N) % 32 == 5, 1.1, 0.0).double()


def ascending():
    return torch.logspace(-12, 3, N, dtype=torch.float64)


def descending():
    return ascending().flip(0)


def growing_spread():
    return torch.exp2(torch.arange(N, dtype=torch.float64) % 40 - 20)


SUMS = {
    "0.1": constant(0.1),
    "1/3": constant(1 / 3),
    "1 - 2^-24": constant(1 - 2.0**-24),
    **{
        f.__name__: f
        for f in (
            spike_then_dust,
            dust_then_spike,
            spike_in_every_chunk,
            alternating,
            one_lane_only,
            ascending,
            descending,
            growing_spread,
        )
    },
}


@pytest.mark.parametrize("p", [2.0, 1.0, 3.0])
@pytest.mark.parametrize("dtype", ref.REAL)
@pytest.mark.parametrize("make", SUMS.values(), ids=SUMS.keys())
def test_one_tensor(make, dtype, p):
    x = make().to(dtype)
    if p == 3.0:  # the reference takes its time over powers; all spikes are still in
        x = x[: 2 * CHUNK + 7]
    elif dtype != torch.float64:  # sums in float64 are exact to 2^-43 at any length: test_a_long_float32_sum
        x = x[: 4 * CHUNK + 7]
    got = gradkern.get_total_norm([x], p).item()
    ref.assert_norm(got, ref.total_norm([x], p), wide=ref.is_wide([x]), ulp=ref.NORM_ULP)


@pytest.mark.parametrize("dtype", ref.REAL)
@pytest.mark.parametrize("make", SUMS.values(), ids=SUMS.keys())
def test_spread_over_many_tensors(make, dtype):
    x = make()[:20_000].to(dtype)
    parts = list(x.split(97))
    got = gradkern.get_total_norm(parts).item()
    ref.assert_norm(got, ref.total_norm([x]), wide=ref.is_wide([x]), ulp=ref.TOTAL_ULP)


@pytest.mark.parametrize("tensors", [1, 3])
def test_a_long_sum_in_float64(tensors):
    """3 * 2^24 elements of pi / 3, so that every addition rounds; the exact sum is known."""
    block = torch.full((1 << 24,), math.pi / 3, dtype=torch.float64)
    exact = ref.np.longdouble(math.pi / 3) * ref.np.sqrt(ref.np.longdouble(tensors << 24))
    got = gradkern.get_total_norm([block[i:] if i else block for i in range(tensors)]).item()
    slack = ref.np.longdouble(tensors - 1) / (tensors << 24)  # the later ones are one element shorter
    assert abs(got - exact) <= exact * (ref.FLOAT64_RELATIVE + slack)


def test_a_long_float32_sum():
    """2^26 + 9 equal elements: torch's own norm is off by half a percent here."""
    x = torch.full(((1 << 26) + 9,), 0.1)
    value = ref.np.longdouble(x[0].item())
    ref.assert_norm(
        gradkern.get_total_norm([x]).item(),
        value * ref.np.sqrt(ref.np.longdouble(x.numel())),
        wide=False,
        ulp=ref.NORM_ULP,
    )
    ref.assert_norm(gradkern.get_total_norm([x], 1.0).item(), value * x.numel(), wide=False, ulp=ref.NORM_ULP)


def test_more_tensors_than_float32_can_count():
    """Ones, one more than 2^24 in all, over many tensors: the total is a sum of sums."""
    parts = [torch.ones(4096)] * 1  # the same tensor twice would count once
    memory = torch.ones((1 << 24) + 4096)
    parts = list(memory.split(4096))
    exact = ref.np.sqrt(ref.np.longdouble(memory.numel()))
    ref.assert_norm(gradkern.get_total_norm(parts).item(), exact, wide=False, ulp=ref.TOTAL_ULP)
    assert gradkern.get_total_norm(parts, 1.0).item() == float(
        torch.tensor(memory.numel(), dtype=torch.float32)
    )
