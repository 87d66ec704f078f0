"""Every norm and count against float64 and wider, over lists that hypothesis makes up."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gradkern
from gradkern.distributed import packed
from gradkern.distributed.packing import pack
from gradkern.kernels import torch_ops
from tests.support import reference as ref
from tests.support.strategies import CHUNK, DTYPES, LAYOUTS, NORM_TYPES, lists, parameters, values

norm_types = st.sampled_from(NORM_TYPES)


@given(lists(), norm_types)
def test_total_norm(tensors, p):
    tensors = [t for t in tensors if t is not None]
    total = gradkern.get_total_norm(tensors, p)
    wide = ref.is_wide(tensors)
    assert total.shape == ()
    assert total.dtype == (torch.float64 if wide else torch.float32)
    ref.assert_norm(total.item(), ref.total_norm(tensors, p), wide=wide, ulp=ref.TOTAL_ULP)


@given(lists(), norm_types)
def test_measure_rows(tensors, p):
    stats = gradkern.measure(parameters(tensors), norm_type=p, count_zeros=True)
    wide = ref.is_wide(tensors)
    assert len(stats) == len(tensors)
    assert stats.has_grad == tuple(t is not None for t in tensors)
    for row, tensor in enumerate(tensors):
        x = np.zeros(0, np.longdouble) if tensor is None else ref.magnitudes(tensor)
        ref.assert_norm(stats.norm[row].item(), ref.norm_of(x, p), wide=wide, ulp=ref.NORM_ULP)
        ref.assert_norm(stats.l2_norm[row].item(), ref.norm_of(x, 2.0), wide=wide, ulp=ref.NORM_ULP)
        ref.assert_norm(stats.max_abs[row].item(), ref.norm_of(x, math.inf), wide=wide, ulp=ref.NORM_ULP)
        assert stats.nonfinite[row].item() == np.count_nonzero(~np.isfinite(x))
        assert stats.zeros[row].item() == np.count_nonzero(x == 0)
    ref.assert_norm(stats.total_norm.item(), ref.total_norm(tensors, p), wide=wide, ulp=ref.TOTAL_ULP)


@given(lists(), norm_types)
def test_clip_returns_the_same_norm_as_measure(tensors, p):
    params = parameters(tensors)
    stats = gradkern.measure(params, norm_type=p)
    total = gradkern.clip_grad_norm_(params, math.inf, norm_type=p)
    if any(t is not None for t in tensors):
        assert ref.bits(total) == ref.bits(stats.total_norm)
    else:
        assert total.item() == 0.0


SIZES = [1, 31, 32, 33, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "p"),
    [*itertools.product(SIZES, (2.0, 1.0)), *((CHUNK + 1, p) for p in NORM_TYPES if p not in (2.0, 1.0))],
)
def test_sizes_around_vectors_and_chunks(n, dtype, p):
    """The sums of orders 2 and 1 at every size, the other orders at one of several chunks."""
    x = values("normal", n, dtype, seed=n)
    total = gradkern.get_total_norm([x], p)
    ref.assert_norm(total.item(), ref.total_norm([x], p), wide=ref.is_wide([x]), ulp=ref.NORM_ULP)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(layout, dtype):
    x = LAYOUTS[layout](values("normal", 252, dtype, seed=3))
    params = parameters([x])
    stats = gradkern.measure(params)
    ref.assert_norm(stats.norm[0].item(), ref.total_norm([x]), wide=ref.is_wide([x]), ulp=ref.NORM_ULP)


@pytest.mark.parametrize("p", [2.0, 1.0, 3.0, 0.5, math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 40, CHUNK + 40])
def test_inf_gives_inf_and_nan_gives_nan(n, dtype, p):
    x = torch.ones(n, dtype=dtype)
    x[n // 2] = math.inf
    assert gradkern.get_total_norm([x, torch.ones(3)], p).item() == math.inf
    x[n - 1] = math.nan
    assert math.isnan(gradkern.get_total_norm([torch.ones(3), x], p).item())
    y = torch.ones(n, dtype=dtype)
    y[n // 2] = -math.inf
    assert gradkern.get_total_norm([y, torch.ones(CHUNK, dtype=dtype)], p).item() == math.inf


@pytest.mark.parametrize("p", [-1.0, -2.0, -math.inf])
def test_negative_orders_keep_nan_wherever_it_stands(p):
    for where in (0, 17, CHUNK, 2 * CHUNK + 4):
        x = torch.full((2 * CHUNK + 5,), 3.0)
        x[where] = math.nan
        assert math.isnan(gradkern.get_total_norm([torch.ones(2), x, torch.ones(2)], p).item())


def test_an_infinite_imaginary_part_does_not_hide_a_nan():
    z = torch.tensor([complex(math.nan, math.inf), 1 + 1j], dtype=torch.complex64)
    for dtype in (torch.complex64, torch.complex128):
        assert math.isnan(gradkern.get_total_norm([z.to(dtype)]).item())
        assert math.isnan(gradkern.get_total_norm([z.to(dtype)], math.inf).item())


@pytest.mark.parametrize("magnitude", [1e-30, 1e-38, 1e-42, 1e18, 1e30])
def test_no_overflow_or_underflow_in_float32(magnitude):
    x = torch.full((4096,), magnitude)
    ref.assert_norm(gradkern.get_total_norm([x]).item(), ref.total_norm([x]), wide=False, ulp=ref.NORM_ULP)


@pytest.mark.parametrize("magnitude", [5e-324, 1e-310, 1e-200, 1e-121, 1e144, 1e145, 1e200, 1e300])
@pytest.mark.parametrize("beside", [0.0, 1.0])
def test_no_overflow_or_underflow_in_float64(magnitude, beside):
    lists_of = [
        torch.full((4096,), magnitude, dtype=torch.float64),
        torch.full((3,), beside, dtype=torch.float64),
    ]
    for order in (lists_of, lists_of[::-1], [torch.cat(lists_of)]):
        for p in (2.0, 1.0, 3.0):
            got = gradkern.get_total_norm(order, p).item()
            ref.assert_norm(got, ref.total_norm(order, p), wide=True, ulp=ref.TOTAL_ULP)


def test_finite_elements_with_a_norm_beyond_float32():
    stats = gradkern.measure(parameters([torch.full((100,), 3e38)]))
    assert stats.total_norm.item() == math.inf
    assert stats.nonfinite.tolist() == [0]


def test_empty_tensors_contribute_nothing_to_any_order():
    empty = torch.zeros(0)
    x = torch.tensor([3.0, 4.0])
    for p in NORM_TYPES:
        alone = gradkern.get_total_norm([x], p)
        assert ref.bits(gradkern.get_total_norm([empty, x, empty, empty], p)) == ref.bits(alone)
        assert gradkern.get_total_norm([empty, torch.zeros(3, 0)], p).item() == 0.0


def test_no_tensors_at_all():
    assert gradkern.get_total_norm([]).item() == 0.0
    assert gradkern.clip_grad_norm_([], 1.0).item() == 0.0


def test_every_float16_and_bfloat16_value_is_read_exactly():
    for dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        finite = every[every.isfinite()]
        stats = gradkern.measure(parameters([t.clone() for t in finite.split(1)][::7]))
        assert torch.equal(stats.norm, finite[::7].float().abs())
        assert torch.equal(stats.max_abs, finite[::7].float().abs())


@given(
    lists(finite=True), st.sampled_from([2.0, 1.0, math.inf, 3.0]), st.sampled_from([0.5, 2.0**-16, 1024.0])
)
def test_inv_scale_multiplies_what_is_reported(tensors, p, inv_scale):
    plain = gradkern.measure(parameters(tensors), norm_type=p)
    scaled = gradkern.measure(parameters(tensors), norm_type=p, inv_scale=inv_scale)
    wide = ref.is_wide(tensors)
    for row, tensor in enumerate(tensors):
        exact = np.longdouble(0) if tensor is None else ref.total_norm([tensor], p) * np.longdouble(inv_scale)
        ref.assert_norm(scaled.norm[row].item(), exact, wide=wide, ulp=ref.NORM_ULP)
    assert scaled.nonfinite.tolist() == plain.nonfinite.tolist()


def test_inv_scale_leaves_counts_alone():
    stats = gradkern.measure(parameters([torch.ones(5)]), norm_type=0.0, inv_scale=0.5)
    assert stats.norm.tolist() == [5.0]
    assert stats.total_norm.item() == 5.0


def test_a_sparse_sum_is_what_counts():
    grad = torch.sparse_coo_tensor(torch.tensor([[0, 0, 2]]), torch.tensor([3.0, 4.0, 0.0]), (5,))
    assert gradkern.get_total_norm([grad]).item() == 7.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_sparse_of_every_type(dtype):
    grad = torch.sparse_coo_tensor(
        torch.tensor([[0, 2, 0]]), torch.tensor([3.0, 4.0, 0.0], dtype=dtype), (5,)
    )
    assert gradkern.get_total_norm([grad]).item() == 5.0


@pytest.mark.parametrize("norm_type", [1e-3, 0.01, -1e-3])
def test_zeros_have_norm_zero_near_order_zero(norm_type):
    """n^(1/p) alone is inf, or 0."""
    params = parameters([torch.zeros(1500), torch.zeros(5)])
    stats = gradkern.measure(params, norm_type=norm_type)
    assert stats.norm.tolist() == [0.0, 0.0]
    assert gradkern.clip_grad_norm_(params, 1.0, norm_type=norm_type).item() == 0.0
    assert not any(p.grad.any() for p in params)


#: n^(1/p) alone is beyond the range of float64, the norm is not.
NEAR_ZERO = [(1 / 1100, 2.0**-500, 2.0**600), (-1 / 1100, 2.0**500, 2.0**-600)]


@pytest.mark.parametrize(("norm_type", "value", "norm"), NEAR_ZERO)
def test_norms_near_order_zero_that_are_in_range(norm_type, value, norm):
    grad = torch.full((2,), value, dtype=torch.float64)
    assert gradkern.get_total_norm([grad], norm_type).item() == pytest.approx(norm, rel=1e-11)
    assert torch_ops.vector_norm(grad, norm_type).item() == pytest.approx(norm, rel=1e-11)
    apart = gradkern.get_total_norm([grad[:1], grad[1:]], norm_type)
    assert apart.item() == pytest.approx(norm, rel=1e-11)
    rows = packed.finish(pack([grad], norm_type, torch.device("cpu"), per_tensor=True), norm_type)
    assert rows.tolist() == pytest.approx([norm, norm], rel=1e-11)
