"""Scaling of lists: one factor for all, one factor each, and gradients that share memory."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradkern.kernels.backend import NullBackend
from gradkern.kernels.extension import EXTENSION as _C
from gradkern.kernels.scale import scale_
from tests.support import reference as ref
from tests.support.strategies import WRITABLE, lists, values

SEVERAL = (1.0, 0.5, 0.3, 0.0, -2.0, 3e-39, 1e-60, math.nan)
FACTORS = st.sampled_from(SEVERAL)


def factors(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


@given(lists(layouts=WRITABLE), st.randoms(use_true_random=False))
def test_every_gradient_by_its_own_factor(tensors, random):
    by_tensor = {id(t): random.choice(SEVERAL) for t in tensors}  # a tensor listed twice has one factor
    row = [by_tensor[id(t)] for t in tensors]
    before = [None if t is None else t.clone() for t in tensors]
    versions = [None if t is None else t._version for t in tensors]
    assert _C.scale_(tensors, factors(*row))
    for old, new, factor, version in zip(before, tensors, row, versions):
        if old is None:
            continue
        if factor == 1.0:
            assert ref.bits(old) == ref.bits(new)
        else:
            ref.assert_scaled(new, old, factor)
            assert new._version > version


@given(lists(layouts=WRITABLE), FACTORS)
def test_one_factor_is_the_same_as_equal_ones(tensors, factor):
    each = [None if t is None else t.clone() for t in tensors]
    assert _C.scale_(each, torch.full((len(each),), factor, dtype=torch.float64))
    assert _C.scale_(tensors, torch.tensor(factor, dtype=torch.float64))
    for a, b in zip(tensors, each):
        assert a is None or ref.bits(a) == ref.bits(b)


def test_a_gradient_listed_twice_is_scaled_once_by_its_first_factor():
    a, b = torch.ones(5), torch.ones(5)
    assert _C.scale_([a, b, a, None, b], factors(0.5, 1.0, 0.25, 0.1, 0.25))
    assert a.tolist() == [0.5] * 5
    assert b.tolist() == [1.0] * 5
    assert a._version > 0
    assert b._version == 0


def test_overlapping_gradients_are_scaled_once_by_the_factor_of_the_first_in_the_list():
    memory = torch.ones(30)
    assert _C.scale_([memory[10:20], memory[5:15], memory[25:]], factors(0.5, 0.25, 2.0))
    assert memory.tolist() == [1.0] * 5 + [0.5] * 15 + [1.0] * 5 + [2.0] * 5


def test_disjoint_views_of_one_memory_have_their_own_factors():
    memory = torch.ones(4, 6)
    assert _C.scale_([memory[:, :3], memory[:, 3:]], factors(0.5, 4.0))
    assert torch.equal(memory, torch.tensor([[0.5] * 3 + [4.0] * 3] * 4))


@pytest.mark.parametrize("factor", [factors(0.5, 0.25), torch.tensor(1.0, dtype=torch.float64)])
@pytest.mark.parametrize("holds", [True, False])
def test_zero_where(factor, holds):
    grads = [torch.tensor([math.nan, 2.0]), torch.ones(6, dtype=torch.bfloat16)[::2]]
    assert _C.scale_(grads, factor, torch.tensor(holds))
    if holds:
        assert grads[0].tolist() == [0.0, 0.0]
        assert grads[1].tolist() == [0.0] * 3
    else:
        assert grads[0][1].item() == 2.0 * factor.flatten()[0].item()
        assert grads[1].tolist() == [factor.flatten()[-1].item()] * 3


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: _C.scale_([torch.ones(2)], torch.tensor(0.5)),
        lambda: _C.scale_([torch.ones(2)], factors(0.5, 0.5)),
        lambda: _C.scale_([torch.ones(2)], factors(0.5).reshape(1, 1)),
    ],
    ids=["float32", "too many", "2-d"],
)
def test_factors_of_another_kind_are_refused(wrong):
    with pytest.raises(ValueError, match=r"\[scale_\] factor: expected float64 of shape \[\] or \[1\]"):
        wrong()


def test_clamp_of_gradients():
    grads = [torch.tensor([-3.0, 0.5]), None, torch.tensor([2.0, 0.0, math.nan])[::2]]
    assert _C.clamp_(grads, 1.0)
    assert grads[0].tolist() == [-1.0, 0.5]
    assert grads[2][0].item() == 1.0
    with pytest.raises(ValueError, match="clip_value: expected a number that is not negative, got -1"):
        _C.clamp_(grads, -1.0)


def test_measure_of_gradients_is_that_of_parameters():
    params = [torch.nn.Parameter(torch.zeros(n)) for n in (3, 70, 5)]
    params[0].grad, params[1].grad = (
        values("normal", 3, torch.float32, 1),
        values("normal", 70, torch.float32, 2),
    )
    grads = [p.grad for p in params]
    by_parameters = _C.measure(params, 2.0, True, 0.5, None)
    by_gradients = _C.measure_gradients(grads, 2.0, True, 0.5, None)
    assert by_parameters.pop("numel") == (3, 70, 5)
    assert by_parameters.keys() == by_gradients.keys()
    assert by_gradients["has_grad"] == (True, True, False)
    for key in ("norm", "max_abs", "nonfinite", "zeros", "total_norm", "decision_norm"):
        assert torch.equal(by_parameters[key], by_gradients[key])


def test_torchs_operations_scale_alike(monkeypatch):
    grads = [values("normal", 50, d, 3) for d in (torch.float32, torch.bfloat16, torch.float64)]
    ours, theirs = [g.clone() for g in grads], [g.clone() for g in grads]
    listed = [theirs[0], None, theirs[1], theirs[2], theirs[0]]
    row = factors(0.3, 0.1, 1.0, 1e-3, 0.5)
    scale_([ours[0], None, ours[1], ours[2], ours[0]], [ours[0], None, ours[1], ours[2], ours[0]], row)
    monkeypatch.setattr("gradkern.kernels.scale.C", NullBackend())
    scale_(listed, listed, row)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=2e-7 if a.dtype is torch.float32 else 0, atol=0)
