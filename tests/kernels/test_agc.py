"""Adaptive gradient clipping in the extension, against float64 numpy: types, layouts, threads."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradkern.kernels.backend import C

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.complex128]
pytestmark = pytest.mark.skipif(not C.build_info(), reason="needs the extension")


def wide(t):
    return t.detach().to(torch.complex128 if t.is_complex() else torch.float64).numpy()


def oracle(weight, grad, clip, eps):
    """The gradient as it should become, and its norms before and after."""
    w, g = wide(weight), wide(grad)
    dims = tuple(range(1, w.ndim)) if w.ndim > 1 else tuple(range(w.ndim))
    limit = clip * np.maximum(np.sqrt((np.abs(w) ** 2).sum(axis=dims, keepdims=True)), eps)
    norm = np.sqrt((np.abs(g) ** 2).sum(axis=dims, keepdims=True))
    factor = np.where(norm < limit, 1.0, limit / np.maximum(norm, 1e-6))
    return g * factor, [np.linalg.norm(g), np.linalg.norm(g * factor)]


def check(weights, grads, clip=0.05, eps=1e-3):
    wanted = [oracle(w, g, clip, eps) for w, g in zip(weights, grads)]
    versions = [g._version for g in grads]
    norms = C.agc_(weights, grads, clip, eps)
    assert norms is not None
    for g, (value, norm), version, *told in zip(grads, wanted, versions, *norms.tolist()):
        # One rounding to the gradient's type; in float64 also those of the factor.
        rtol = (4 if g.dtype in (torch.float64, torch.complex128) else 1.01) * torch.finfo(g.dtype).eps
        np.testing.assert_allclose(wide(g), value, rtol=rtol, atol=1e-7 * (g.dtype == torch.float16))
        assert told == pytest.approx(norm, rel=1e-12)
        assert g._version == version + (told[0] != told[1]) or g._is_view()


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 6), max_size=4).map(tuple), min_size=1, max_size=6),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_random_lists(shapes, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes]
    grads = [
        torch.randn(shape, dtype=dtype, generator=generator) * 10 ** (i % 3 - 2)
        for i, shape in enumerate(shapes)
    ]
    check(weights, grads)


@pytest.mark.parametrize("threads", [1, 2])
def test_long_and_many_units_on_any_number_of_threads(threads):
    torch.manual_seed(0)
    shapes = [(3, 70_000), (5_000, 7), (100_001,), (64, 16, 3, 3), (1, 40_000)]
    weights = [torch.randn(shape) for shape in shapes]
    first = [torch.randn(shape) * 0.03 for shape in shapes]
    second = [g.clone() for g in first]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        check(weights, first)
        torch.set_num_threads(1)
        C.agc_(weights, second, 0.05, 1e-3)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_channels_last_and_buckets():
    torch.manual_seed(0)
    weights = [torch.randn(8, 3, 5, 5), torch.randn(6, 4), torch.randn(9)]
    conv = torch.randn(8, 3, 5, 5).to(memory_format=torch.channels_last)
    bucket = torch.randn(6 * 4 + 9)  # as DistributedDataParallel's gradient_as_bucket_view
    check(weights, [conv, bucket[:24].view(6, 4), bucket[24:]])


def test_what_the_kernel_does_not_take_is_left_as_it_is():
    grads = [torch.ones(4, 6).t()]
    assert C.agc_([torch.ones(6, 4)], grads, 0.01, 1e-3) is None
    assert C.agc_([torch.ones(3)], [torch.ones(6)[::2]], 0.01, 1e-3) is None
    overlapping = torch.ones(5)
    assert C.agc_([torch.ones(3)] * 2, [overlapping[:3], overlapping[2:]], 0.01, 1e-3) is None
    assert torch.equal(grads[0], torch.ones(6, 4)) and torch.equal(overlapping, torch.ones(5))


def test_a_gradient_listed_twice_is_scaled_once():
    weight, grad = torch.ones(2, 2), torch.full((2, 2), 3.0)
    before, after = C.agc_([weight, weight], [grad, grad], 0.1, 1e-3)
    limit = 0.1 * math.sqrt(2)
    torch.testing.assert_close(grad, torch.full((2, 2), limit / math.sqrt(2)))
    assert before.tolist() == [6.0, 6.0]
    assert after[0] == after[1] == pytest.approx(limit * math.sqrt(2))


def test_beyond_the_range_of_float32_and_not_finite():
    weights = [torch.full((2, 2), 1e-300, dtype=torch.float64), torch.ones(2, 2)]
    huge = torch.full((2, 2), 1e200, dtype=torch.float64)
    bad = torch.tensor([[math.nan, 1.0], [3.0, 4.0]])
    C.agc_(weights, [huge, bad], 0.1, 1e-3)
    torch.testing.assert_close(huge, torch.full((2, 2), 1e-4 / math.sqrt(2), dtype=torch.float64))
    assert bad[0].isnan().all()  # as timm: its factor is NaN
    torch.testing.assert_close(bad[1], torch.tensor([3.0, 4.0]) * (0.1 * math.sqrt(2) / 5))


def test_entries_without_gradient():
    grads = [None, torch.full((3,), 2.0), torch.zeros(2, 2)]
    before, after = C.agc_([torch.ones(2), torch.ones(3), torch.ones(2, 2)], grads, 0.1, 1e-3)
    assert before[0] == before[2] == after[0] == after[2] == 0.0
    assert after[1] / before[1] == pytest.approx(0.05)
