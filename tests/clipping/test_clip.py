"""Effects of clipping on gradients, and what it does not change."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import gradkern
from gradkern.kernels.extension import EXTENSION as _C
from tests.support import reference as ref
from tests.support.strategies import CHUNK, DTYPES, LAYOUTS, WRITABLE, lists, parameters, values


def copies(tensors):
    return [None if t is None else t.clone() for t in tensors]


@given(lists(layouts=WRITABLE), st.sampled_from([2.0, 1.0, math.inf, 3.0]), st.sampled_from([1e-3, 1.0, 1e3]))
def test_elements_are_scaled_with_one_rounding(tensors, p, max_norm):
    params = parameters(tensors)
    before = copies(tensors)
    total = gradkern.clip_grad_norm_(params, max_norm, norm_type=p)
    coef = ref.coefficient(max_norm, total)
    for old, new in zip(before, tensors):
        if old is None:
            continue
        if coef >= 1:
            assert ref.bits(old) == ref.bits(new)
        else:
            ref.assert_scaled(new, old, coef)


@given(lists(), st.sampled_from([2.0, 1.0, math.inf, 0.5]))
def test_nothing_is_written_when_the_norm_is_small_enough(tensors, p):
    params = parameters(tensors)
    before = [None if t is None else ref.bits(t) for t in tensors]
    versions = [None if t is None else t._version for t in tensors]
    total = gradkern.clip_grad_norm_(params, math.inf, norm_type=p)
    if math.isfinite(total.item()):
        gradkern.clip_grad_norm_(params, 2 * total.item() + 1, norm_type=p)
    assert before == [None if t is None else ref.bits(t) for t in tensors]
    assert versions == [None if t is None else t._version for t in tensors]


@given(lists(), st.sampled_from([2.0, 1.0, math.inf]))
def test_split_functions_give_the_same_bits(tensors, p):
    whole = parameters(copies(tensors))
    split = parameters(copies(tensors))
    total = gradkern.clip_grad_norm_(whole, 0.5, norm_type=p)
    grads = [q.grad for q in split if q.grad is not None]
    norm = gradkern.get_total_norm(grads, p)
    gradkern.clip_grads_with_norm_(split, 0.5, norm)
    if grads:
        assert ref.bits(norm) == ref.bits(total)
    for a, b in zip(whole, split):
        assert a.grad is None or ref.bits(a.grad) == ref.bits(b.grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 15, 16, 33, CHUNK + 1])
def test_versions_are_bumped_when_written(n, dtype):
    grad = values("normal", n, dtype, seed=1)
    version = grad._version
    gradkern.clip_grad_norm_(parameters([grad]), 1e-3)
    assert grad._version > version


def test_a_saved_gradient_that_was_clipped_is_noticed_by_autograd():
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    weight.grad = torch.tensor([3.0, 4.0])
    product = weight * weight.grad
    gradkern.clip_grad_norm_([weight], 1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_max_norm_of_zero_as_torch():
    grads = [torch.tensor([3.0, -4.0]), torch.tensor([12.0, 0.0])]
    ours, theirs = parameters(copies(grads)), parameters(copies(grads))
    gradkern.clip_grad_norm_(ours, 0.0)
    torch.nn.utils.clip_grad_norm_(theirs, 0.0)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a.grad, b.grad)


NEGATIVE = {
    "max_norm": lambda ps: gradkern.clip_grad_norm_(ps, -1.0),
    "max_norm of a split clip": lambda ps: gradkern.clip_grads_with_norm_(ps, -1.0, torch.tensor(5.0)),
    "total_norm": lambda ps: gradkern.clip_grads_with_norm_(ps, 1.0, torch.tensor(-1.0)),
    "max_norm of a clipper": lambda ps: gradkern.GradClipper(ps, -1.0).clip_(),
    "clip_value": lambda ps: gradkern.clip_grad_value_(ps, -1.0),
    "operator": lambda ps: torch.ops.gradkern.clip_([p.grad for p in ps], -1.0, 2.0, False),
    "value operator": lambda ps: torch.ops.gradkern.clip_value_([p.grad for p in ps], -1.0),
}


@pytest.mark.parametrize("call", NEGATIVE.values(), ids=NEGATIVE.keys())
def test_negative_limits_are_refused_before_anything_is_written(call):
    params = parameters([torch.tensor([3.0, -4.0]), torch.tensor([12.0, 0.0])])
    with pytest.raises(ValueError, match="negative, got -1"):
        call(params)
    assert params[0].grad.tolist() == [3.0, -4.0]
    assert params[1].grad.tolist() == [12.0, 0.0]
    assert params[0].grad._version == 0


def test_a_total_norm_of_nan_makes_gradients_nan_as_in_torch():
    (param,) = parameters([torch.tensor([3.0, -4.0])])
    gradkern.clip_grads_with_norm_([param], 1.0, torch.tensor(math.nan))
    assert param.grad.isnan().all()


OVERFLOWING = {
    "clip_grad_norm_": lambda ps: gradkern.clip_grad_norm_(ps, 1.0),
    "GradClipper": lambda ps: gradkern.GradClipper(ps, 1.0).clip_().total_norm,
    "GradClipper, raise": lambda ps: gradkern.GradClipper(ps, 1.0, on_nonfinite="raise").clip_().total_norm,
    "GradClipper, skip": lambda ps: gradkern.GradClipper(ps, 1.0, on_nonfinite="skip").clip_().total_norm,
    "GradClipper, zero": lambda ps: gradkern.GradClipper(ps, 1.0, on_nonfinite="zero").clip_().total_norm,
    "operator": lambda ps: torch.ops.gradkern.clip_([p.grad for p in ps], 1.0, 2.0, False),
    "compiled": lambda ps: torch.compile(gradkern.clip_grad_norm_, fullgraph=True, backend="aot_eager")(
        ps, 1.0
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("call", OVERFLOWING.values(), ids=OVERFLOWING.keys())
def test_finite_gradients_whose_norm_overflows_float32_are_scaled(call, dtype):
    value = 3.375e38 if dtype is torch.bfloat16 else 3.4e38
    params = parameters([torch.full((1,), value, dtype=dtype) for _ in range(4)])
    assert call(params).item() == math.inf  # what is returned is rounded
    for param in params:
        assert param.grad.item() == 0.5


def test_an_overflowing_norm_of_order_1():
    params = parameters([torch.full((4,), -3e38)])
    assert gradkern.clip_grad_norm_(params, 1.0, norm_type=1.0).item() == math.inf
    assert params[0].grad.tolist() == [-0.25] * 4


def test_what_decisions_go_by_is_what_is_returned_unless_float32_cannot_hold_it():
    for size, held in ((4, False), (1, True)):
        columns = _C.measure(parameters([torch.full((size,), 3e38)]), 2.0, False, 1.0, None)
        decision, returned = columns["decision_norm"], columns["total_norm"]
        assert decision.dtype == torch.float64
        if held:
            assert decision.item() == returned.item()
        else:
            assert returned.item() == math.inf
            assert decision.item() == pytest.approx(6e38, rel=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_reaches_every_gradient(dtype):
    bad = torch.ones(CHUNK + 3, dtype=dtype)
    bad[CHUNK + 1] = math.nan
    other = torch.ones(5, dtype=torch.float32)
    total = gradkern.clip_grad_norm_(parameters([other, bad]), 1.0)
    assert math.isnan(total.item())
    assert other.isnan().all()
    assert bad.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_inf_zeroes_the_finite_elements_as_in_torch(dtype):
    grad = torch.ones(40, dtype=dtype)
    grad[7] = math.inf
    total = gradkern.clip_grad_norm_(parameters([grad]), 1.0)
    assert total.item() == math.inf
    assert grad[7].isnan()
    assert torch.count_nonzero(torch.cat([grad[:7], grad[8:]])) == 0


def test_an_infinite_max_norm_never_writes_not_even_nan():
    grad = torch.tensor([math.nan, 1.0, math.inf])
    before, version = ref.bits(grad), grad._version
    assert math.isnan(gradkern.clip_grad_norm_(parameters([grad]), math.inf).item())
    assert ref.bits(grad) == before
    assert grad._version == version


@pytest.mark.parametrize("magnitude", [1e-42, 1e-30, 1e30, 1e38])
@pytest.mark.parametrize("max_norm", [1e-44, 1e-30, 1.0, 1e20])
def test_extreme_coefficients_keep_the_contract(magnitude, max_norm):
    """Coefficients below float32's normal range, whose product is representable nevertheless."""
    grad = torch.tensor([1.0, 1.7, -0.3, 1e-7]) * magnitude
    old = grad.clone()
    total = gradkern.clip_grad_norm_(parameters([grad]), max_norm)
    coef = ref.coefficient(max_norm, total)
    if coef < 1:
        ref.assert_scaled(grad, old, coef)
    else:
        assert torch.equal(grad, old)


def test_every_significand_is_rounded_once():
    """All significands of both factors; a coefficient that is rounded first would fail."""
    grad = (torch.arange(2**14, dtype=torch.float32) + 2**14) * 2.0**-14
    for total in (1.0000001, 1.3, 1.7, 1.9999999, 1.0 + 2.0**-23):
        new = grad.clone()
        gradkern.clip_grads_with_norm_(parameters([new]), 1.0, torch.tensor(total, dtype=torch.float64))
        ref.assert_scaled(new, grad, 1.0 / (total + 1e-6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_value_is_scaled_right(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    for coef in (0.5, 1 / 3, 0.9999, 2.0**-12, 1e-5):
        new = every.clone()
        gradkern.clip_grads_with_norm_(parameters([new]), coef, 1.0)
        ref.assert_scaled(new, every, ref.coefficient(coef, torch.tensor(1.0)))


class TestOncePerGradient:
    def test_a_parameter_listed_twice_counts_and_scales_once(self):
        p = nn.Parameter(torch.zeros(2))
        p.grad = torch.tensor([3.0, 4.0])
        assert gradkern.clip_grad_norm_([p, p, p], 1.0).item() == 5.0
        ref.assert_scaled(p.grad, torch.tensor([3.0, 4.0]), 1 / (5 + 1e-6))

    def test_two_parameters_that_share_a_gradient(self):
        grad = torch.tensor([3.0, 4.0])
        params = parameters([grad, torch.zeros(4), grad])
        stats = gradkern.measure(params)
        assert stats.norm.tolist() == [5.0, 0.0, 5.0]
        assert stats.total_norm.item() == 5.0
        gradkern.clip_grad_norm_(params, 1.0)
        ref.assert_scaled(grad, torch.tensor([3.0, 4.0]), 1 / (5 + 1e-6))

    def test_a_sparse_gradient_listed_twice(self):
        grad = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.tensor([1.0, 2.0]), (3,))
        p = nn.Parameter(torch.zeros(3))
        p.grad = grad
        assert gradkern.clip_grad_norm_([p, p], 1.0).item() == 3.0
        ref.assert_scaled(p.grad.to_dense(), torch.tensor([0.0, 3.0, 0.0]), 1 / (3 + 1e-6))


def clip_views(memory, views, max_norm=1.0):
    """Clips the views; returns the coefficient and which memory locations they cover."""
    covered = torch.zeros_like(memory, dtype=torch.bool)
    for v in views:
        covered.as_strided(v.size(), v.stride(), v.storage_offset()).fill_(True)
    total = gradkern.clip_grad_norm_(parameters(views), max_norm)
    return ref.coefficient(max_norm, total), covered


OVERLAPS = {
    "a bucket and its parts": lambda m: [m[:40], m[40:41], m[41:100]],
    "interleaved columns": lambda m: [m.view(20, 6)[:, 0], m.view(20, 6)[:, 1:3], m.view(20, 6)[:, 5]],
    "overlapping ranges": lambda m: [m[:50], m[30:80], m[79:90]],
    "a part and the whole": lambda m: [m[10:20], m],
    "whole, transposed and flat": lambda m: [m, m.view(12, 10).t(), m.view(10, 12)],
    "expanded": lambda m: [m[:30, None].expand(30, 4)],
    "expanded beside its base": lambda m: [m[:30], m[:30, None].expand(30, 4), m[60:]],
    "self-overlapping windows": lambda m: [m.as_strided((20, 5), (3, 1), 2)],
    "windows that overlap one another": lambda m: [
        m.as_strided((20, 5), (3, 1), 2),
        m.as_strided((30, 2), (2, 3), 7),
    ],
    "one location": lambda m: [m[7:8].expand(100)],
    "steps": lambda m: [m[::2], m[1::2], m[::3]],
}


class TestOncePerLocation:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("make", OVERLAPS.values(), ids=OVERLAPS.keys())
    def test_overlapping_views(self, make, dtype):
        memory = values("normal", 120, dtype, seed=5) * 3
        old = memory.clone()
        views = make(memory)
        expected = ref.total_norm(views)
        ref.assert_norm(
            gradkern.get_total_norm(views).item(), expected, wide=ref.is_wide(views), ulp=ref.TOTAL_ULP
        )
        coef, covered = clip_views(memory, views)
        assert coef < 1
        ref.assert_scaled(memory[covered], old[covered], coef)
        assert ref.bits(memory[~covered]) == ref.bits(old[~covered])

    def test_real_and_imaginary_part_of_one_tensor(self):
        z = values("normal", 50, torch.complex64, seed=2)
        old = z.clone()
        total = gradkern.clip_grad_norm_(parameters([z.real, z.imag]), 1.0)
        ref.assert_scaled(z, old, ref.coefficient(1.0, total))

    def test_zero_policy_on_overlapping_views(self):
        memory = torch.ones(100)
        memory[50] = math.nan
        params = parameters([memory[:60], memory[40:90]])
        gradkern.GradClipper(params, 1.0, on_nonfinite="zero").clip_()
        assert memory.tolist() == [0.0] * 90 + [1.0] * 10

    def test_overlapping_foreign_memory(self):
        array = np.arange(1.0, 101.0, dtype=np.float32)
        old = torch.from_numpy(array.copy())
        params = parameters([torch.from_numpy(array[40:]), torch.from_numpy(array[:60])])
        total = gradkern.clip_grad_norm_(params, 1.0)
        ref.assert_norm(total.item(), ref.total_norm([old[40:], old[:60]]), wide=False, ulp=ref.TOTAL_ULP)
        ref.assert_scaled(torch.from_numpy(array), old, ref.coefficient(1.0, total))

    def test_memory_that_overlaps_between_elements_is_refused(self):
        raw = np.zeros(404, dtype=np.uint8)
        first, second = np.frombuffer(raw, np.float32, 100), np.frombuffer(raw, np.float32, 99, offset=2)
        params = parameters([torch.from_numpy(first), torch.from_numpy(second)])
        first[:] = 1.0
        with pytest.raises(ValueError, match="start a whole number of elements apart"):
            gradkern.clip_grad_norm_(params, 1.0)
        assert first[50] == 1.0

    def test_random_overlaps_in_one_storage(self):
        for seed in range(40):
            generator = torch.Generator().manual_seed(seed)
            pick = lambda low, high: int(torch.randint(low, high, (), generator=generator))  # noqa: B023,E731
            memory = torch.randn(400, generator=generator) + 2
            old = memory.clone()
            views = [
                memory.as_strided((pick(1, 8), pick(1, 8)), (pick(0, 20), pick(0, 20)), pick(0, 100))
                for _ in range(pick(1, 6))
            ]
            coef, covered = clip_views(memory, views, max_norm=0.1)
            ref.assert_scaled(memory[covered], old[covered], coef)
            assert torch.equal(memory[~covered], old[~covered])


@pytest.mark.parametrize("layout", WRITABLE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_are_written_in_place(layout, dtype):
    grad = LAYOUTS[layout](values("normal", 252, dtype, seed=3))
    old = grad.clone()
    pointer = grad.data_ptr()
    total = gradkern.clip_grad_norm_(parameters([grad]), 0.25)
    assert grad.data_ptr() == pointer
    ref.assert_scaled(grad, old, ref.coefficient(0.25, total))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("coalesced", [True, False])
def test_sparse_coo(coalesced, dtype):
    index = torch.tensor([[0, 3, 0], [1, 2, 1]])
    grad = torch.sparse_coo_tensor(
        index, torch.tensor([[1.0, 2.0], [4.0, 8.0], [2.0, 2.0]], dtype=dtype), (5, 4, 2)
    )
    grad = grad.coalesce() if coalesced else grad
    param = nn.Parameter(torch.zeros(5, 4, 2, dtype=dtype))
    param.grad = grad
    old = grad.to_dense()
    total = gradkern.clip_grad_norm_([param], 1.0)
    assert total.item() == pytest.approx(math.sqrt(9 + 16 + 16 + 64), rel=1e-6)
    assert param.grad.is_sparse
    assert param.grad.is_coalesced() == coalesced
    coef = ref.coefficient(1.0, total)
    exact = ref.scaled(old, coef)
    # Uncoalesced: two scaled terms add up, each rounded.
    bound = (1 if coalesced else 3) * torch.finfo(dtype).eps
    assert ((param.grad.to_dense() - exact).abs() <= bound * exact.abs()).all()


def test_an_empty_sparse_gradient():
    param = nn.Parameter(torch.zeros(4))
    param.grad = torch.sparse_coo_tensor(torch.zeros(1, 0, dtype=torch.long), torch.zeros(0), (4,))
    assert gradkern.clip_grad_norm_([param], 0.0).item() == 0.0


def test_sparse_embedding_beside_dense_layers():
    model = nn.Sequential(nn.Embedding(50, 8, sparse=True), nn.Linear(8, 4))
    model(torch.tensor([1, 7, 7, 30])).square().sum().mul(100).backward()
    dense = [p.grad.to_dense().double() for p in model.parameters()]
    total = gradkern.clip_grad_norm_(model.parameters(), 0.5)
    ref.assert_norm(total.item(), ref.total_norm(dense), wide=False, ulp=ref.TOTAL_ULP)
    after = [p.grad.to_dense() for p in model.parameters()]
    ref.assert_norm(
        gradkern.get_total_norm(after).item(), ref.total_norm(after), wide=False, ulp=ref.TOTAL_ULP
    )
    assert gradkern.get_total_norm(after).item() == pytest.approx(0.5, rel=1e-5)


class TestInferenceTensors:
    @pytest.mark.parametrize("layout", ["contiguous", "sliced", "expanded"])
    def test_in_inference_mode(self, layout):
        with torch.inference_mode():
            grad = LAYOUTS[layout](torch.full((9,), 2.0))
            param = nn.Parameter(torch.zeros(grad.shape))
            param.grad = grad
            total = gradkern.clip_grad_norm_([param], 1.0)
            ref.assert_scaled(grad, torch.full(grad.shape, 2.0), ref.coefficient(1.0, total))

    def test_outside_it_all_or_nothing(self):
        with torch.inference_mode():
            grad = torch.full((9,), 2.0)[::2]
            param = nn.Parameter(torch.zeros(5))
            param.grad = grad
        other = torch.full((3,), 2.0)
        before = other.clone()
        try:
            total = gradkern.clip_grad_norm_([*parameters([other]), param], 1.0)
        except RuntimeError:
            assert torch.equal(other, before)
        else:
            coef = ref.coefficient(1.0, total)
            ref.assert_scaled(other, before, coef)
            ref.assert_scaled(grad.clone(), torch.full((5,), 2.0), coef)


def test_a_gradient_that_has_a_graph_of_its_own():
    x = nn.Parameter(torch.tensor([1.0, 2.0]))
    (grad,) = torch.autograd.grad(x.pow(3).sum(), x, create_graph=True)
    x.grad = grad
    total = gradkern.clip_grad_norm_([x], 1.0)
    assert not total.requires_grad
    assert x.grad.detach().norm().item() == pytest.approx(1.0, rel=1e-5)


def test_views_from_unbind_and_split_can_be_written():
    memory = torch.full((4, 6), 2.0)
    grads = [*memory[:2].unbind(0), *memory[2:].split(3, dim=1)]
    old = memory.clone()
    total = gradkern.clip_grad_norm_(parameters(grads), 1.0)
    ref.assert_scaled(memory, old, ref.coefficient(1.0, total))


def test_rarer_floating_types_take_the_slower_route():
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        grad = torch.tensor([3.0, 4.0]).to(dtype)
        total = gradkern.clip_grad_norm_(parameters([grad]), 2.5)
        assert total.item() == 5.0
        assert grad.float().tolist() == pytest.approx([1.5, 2.0], rel=0.13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_coefficient_below_the_smallest_normal_float32(dtype):
    grad = torch.tensor([3e38, -1e38, 1.0, 0.0], dtype=dtype).repeat(9)
    old = grad.clone()
    total = gradkern.clip_grad_norm_(parameters([grad]), 1.0, norm_type=math.inf)
    coef = ref.coefficient(1.0, total)
    assert 0 < coef < 2.0**-126
    ref.assert_scaled(grad, old, coef)
    assert grad[0].item() == pytest.approx(1.0, rel=2**-8)


def test_sparse_gradients_that_share_their_values_are_scaled_once():
    shared = torch.tensor([3.0, 4.0])
    first = torch.sparse_coo_tensor([[0, 2]], shared, (4,), is_coalesced=True, check_invariants=True)
    second = torch.sparse_coo_tensor(
        first._indices(), first._values(), (4,), is_coalesced=True, check_invariants=True
    )
    total = gradkern.clip_grad_norm_(parameters([first, second]), 1.0)
    assert total.item() == 5.0
    torch.testing.assert_close(first._values(), torch.tensor([0.6, 0.8]))
    assert second._values().data_ptr() == first._values().data_ptr()


class MainGrad(nn.Parameter):
    """A Parameter that keeps its gradient elsewhere, as some frameworks' do."""

    @property
    def grad(self):
        return getattr(self, "main_grad", None)


class Holder:
    """Not a tensor, but an object with `.grad`, which is all that torch's functions need."""

    def __init__(self, param):
        self.param = param

    @property
    def grad(self):
        return self.param.main_grad


@pytest.mark.parametrize("wrap", [lambda p: p, Holder])
def test_a_grad_property_is_read_and_written(wrap):
    param = MainGrad(torch.zeros(3))
    param.main_grad = torch.tensor([3.0, 0.0, 4.0])
    listed = [wrap(param), MainGrad(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    assert float(gradkern.clip_grad_norm_(listed, 1.0)) == 5.0
    assert torch.allclose(param.main_grad, torch.tensor([0.6, 0.0, 0.8]), rtol=1e-6, atol=0)
    gradkern.clip_grad_value_(listed, 0.7)
    assert param.main_grad.max() == torch.tensor(0.7)


def test_a_grad_property_that_shortens_the_list():
    class Shortens(nn.Parameter):
        @property
        def grad(self):
            listed.clear()
            return torch.tensor([3.0, 4.0])

    listed = [Shortens(torch.zeros(2)), nn.Parameter(torch.zeros(2))]
    assert float(gradkern.clip_grad_norm_(listed, 10.0)) == 5.0


class Raising(nn.Parameter):
    """A Parameter whose `.grad` raises."""

    error: BaseException = RuntimeError("the shard was freed")

    @property
    def grad(self):
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("freed"), AttributeError("main_grad"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    "wrap", [lambda p: p, lambda p: type("Wrap", (), {"grad": Raising.grad, "error": p.error})()]
)
def test_what_a_grad_property_raises_is_seen(monkeypatch, error, wrap):
    monkeypatch.setattr(Raising, "error", error)
    (first,) = parameters([torch.tensor([30.0, 40.0])])
    with pytest.raises(type(error)) as caught:
        gradkern.clip_grad_norm_([first, wrap(Raising(torch.zeros(3)))], 1.0)
    assert caught.value is error
    assert first.grad.tolist() == [30.0, 40.0]


def test_sparse_gradients_whose_values_repeat_are_clipped():
    embedding, plain = nn.Embedding(5, 3, sparse=True), nn.Parameter(torch.ones(2))
    loss = embedding(torch.tensor([1, 1, 4])).sum() * 10 + (plain * 10).sum()
    plain.grad, embedding.weight.grad = torch.autograd.grad(loss, [plain, embedding.weight])
    assert embedding.weight.grad._values().stride() == (0, 0)
    exact = ref.total_norm([plain.grad, embedding.weight.grad.to_dense()])
    total = gradkern.clip_grad_norm_([plain, embedding.weight], 1.0)
    ref.assert_norm(total.item(), exact, wide=False, ulp=ref.TOTAL_ULP)
    after = [plain.grad, embedding.weight.grad.to_dense()]
    torch.testing.assert_close(gradkern.get_total_norm(after), torch.tensor(1.0), rtol=1e-6, atol=0)
    plain.grad.fill_(math.nan)
    gradkern.GradClipper([plain, embedding.weight], 1.0, on_nonfinite="zero").clip_()
    assert not plain.grad.any() and not embedding.weight.grad.to_dense().any()


def test_values_of_a_sparse_gradient_that_are_another_gradient_are_scaled_once():
    dense = torch.tensor([3.0, 4.0])
    sparse = torch.sparse_coo_tensor([[0, 2]], dense, (4,), is_coalesced=True, check_invariants=True)
    assert sparse._values().data_ptr() == dense.data_ptr()
    total = gradkern.clip_grad_norm_(parameters([dense, sparse]), 1.0)
    torch.testing.assert_close(total, torch.tensor(50.0).sqrt())
    torch.testing.assert_close(dense, torch.tensor([3.0, 4.0]) / 50**0.5)


def test_interleaved_views_are_no_duplicates():
    whole = torch.arange(1.0, 31.0).reshape(5, 6)
    before, views = whole.clone(), [whole[:, :2], whole[:, 2:3], whole[1:4, 3:], whole[0, 3:]]
    exact = ref.total_norm(views)
    total = gradkern.clip_grad_norm_(parameters(views), 1.0)
    ref.assert_norm(total.item(), exact, wide=False, ulp=ref.TOTAL_ULP)
    coef = ref.coefficient(1.0, total)
    for view, old in zip(views, [before[:, :2], before[:, 2:3], before[1:4, 3:], before[0, 3:]]):
        ref.assert_scaled(view, old, coef)
    assert torch.equal(whole[4, 3:], before[4, 3:])


def test_clones_that_are_not_written_yet_are_two_gradients():
    base = torch.ones(4, 4)
    other = torch._lazy_clone(base)
    views = [base[:, :2], other[:, :2]]
    assert gradkern.clip_grad_norm_(parameters(views), 1.0).item() == 4.0
    for tensor in (base, other):
        torch.testing.assert_close(tensor[:, :2], torch.full((4, 2), 0.25))
        assert torch.equal(tensor[:, 2:], torch.ones(4, 2))


def test_a_zero_tensor_is_torchs_to_handle():
    (param,) = parameters([torch.ones(3)])
    param.grad = torch._efficientzerotensor((3,))
    assert gradkern.get_total_norm([param.grad]).item() == 0.0


def test_an_unwritten_clone_listed_twice_is_one_gradient():
    (param,) = parameters([torch.ones(1000)])
    param.grad = torch._lazy_clone(base := torch.ones(1000))
    total = gradkern.clip_grad_norm_([param, param], 1.0)
    assert total.item() == pytest.approx(1000**0.5)
    torch.testing.assert_close(param.grad, torch.full((1000,), 1000**-0.5))
    assert torch.equal(base, torch.ones(1000))


def test_overlapping_views_of_an_unwritten_clone_leave_its_origin_alone():
    base = torch.ones(10)
    clone = torch._lazy_clone(base)
    gradkern.clip_grad_norm_(parameters([clone[:7], clone[3:]]), 1.0)
    assert torch.equal(base, torch.ones(10))
    torch.testing.assert_close(clone, torch.full((10,), 14**-0.5))
