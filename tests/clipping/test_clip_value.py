"""`clip_grad_value_` against torch's clamp, bit by bit."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import gradkern
from tests.support import reference as ref
from tests.support.strategies import CHUNK, WRITABLE, lists, parameters, values


def clamped(tensor, limit):
    """torch's clamp; a limit beyond the type's range (which torch refuses) limits only infinities."""
    reach = torch.finfo(tensor.dtype).max
    return (
        torch.clamp(tensor.clone(), -limit, limit) if limit <= reach or limit == math.inf else tensor.clone()
    )


@given(lists(layouts=WRITABLE), st.sampled_from([0.0, 0.1, 1.0, 1 / 3, 1e-40, 1e30, math.inf]))
def test_equals_torch_clamp(tensors, limit):
    tensors = [t for t in tensors if t is None or not t.is_complex()]
    expected = [None if t is None else clamped(t, limit) for t in tensors]
    gradkern.clip_grad_value_(parameters(tensors), limit)
    for new, right in zip(tensors, expected):
        if new is not None:
            assert torch.equal(new.isnan(), right.isnan())
            assert torch.equal(new[~new.isnan()], right[~right.isnan()])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_value(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    for limit in (1.0, 0.3, 1e-7, 65504.0):
        new = every.clone()
        gradkern.clip_grad_value_(parameters([new]), limit)
        theirs = every.clone()
        param = nn.Parameter(torch.zeros(len(every), dtype=dtype))
        param.grad = theirs
        torch.nn.utils.clip_grad_value_([param], limit)
        assert torch.equal(new.isnan(), every.isnan())
        assert torch.equal(new[~every.isnan()], theirs[~every.isnan()])


@pytest.mark.parametrize("dtype", ref.REAL)
@pytest.mark.parametrize("n", [1, 255, 256, 257, CHUNK + 1])
def test_one_element_outside_at_either_end(n, dtype):
    for where in (0, n - 1):
        grad = torch.full((n,), 0.5, dtype=dtype)
        grad[where] = -8
        gradkern.clip_grad_value_(parameters([grad]), 1.0)
        expected = torch.full((n,), 0.5, dtype=dtype)
        expected[where] = -1
        assert torch.equal(grad, expected)


def test_nan_stays_nan_and_inf_becomes_the_limit():
    grad = torch.tensor([math.nan, math.inf, -math.inf, -0.0])
    gradkern.clip_grad_value_(parameters([grad]), 2.0)
    assert grad[0].isnan()
    assert grad[1:].tolist() == [2.0, -2.0, 0.0]
    assert torch.signbit(grad[3])


def test_versions_are_bumped():
    grad = torch.tensor([3.0])
    version = grad._version
    gradkern.clip_grad_value_(parameters([grad]), 1.0)
    assert grad._version > version


def test_coalesced_sparse():
    grad = torch.sparse_coo_tensor(torch.tensor([[0, 3]]), torch.tensor([5.0, -0.5]), (4,)).coalesce()
    gradkern.clip_grad_value_(parameters([grad]), 1.0)
    assert grad.to_dense().tolist() == [1.0, 0.0, 0.0, -0.5]


def test_overlapping_views():
    memory = values("normal", 100, torch.float32, seed=1) * 3
    expected = memory.clone()
    expected[:70] = expected[:70].clamp(-1, 1)
    gradkern.clip_grad_value_(parameters([memory[:50], memory[30:70], memory[::2][:20]]), 1.0)
    assert torch.equal(memory, expected)


def test_nothing_to_do():
    assert gradkern.clip_grad_value_([], 1.0) is None
    assert gradkern.clip_grad_value_(parameters([None, torch.zeros(0)]), 1.0) is None


@pytest.mark.parametrize(
    "limit", [0.1, 1.0, 65504.0, 65519.0, 65520.0, 3e38, math.inf, 2.0**-24, 2.0**-25, 0.0, -0.0]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_number_of_16_bits(dtype, limit):
    old = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    (param,) = parameters([old.clone()])
    gradkern.clip_grad_value_([param], limit)
    bound = torch.tensor(limit, dtype=torch.float32).double()
    want = torch.minimum(torch.maximum(old.double(), -bound), bound).to(dtype)
    numbers = ~old.isnan()
    assert torch.equal(param.grad[numbers], want[numbers])
    assert torch.equal(param.grad[~numbers].view(torch.int16), old[~numbers].view(torch.int16))
