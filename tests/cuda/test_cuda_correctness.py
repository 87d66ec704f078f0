"""The numeric contract on the device, against float64 references and against the CPU kernels."""

from __future__ import annotations

import math

import pytest
import torch

import gradkern
from gradkern.kernels.backend import C
from tests.cuda.cuda_cases import (
    DTYPES,
    ORDERS,
    REALS,
    SIZES,
    assert_norm,
    bits,
    is_wide,
    parameter,
    random,
    reference_norm,
)


def test_kernels_are_compiled_in() -> None:
    assert gradkern.build_info()["cuda"], "a GPU is here, but this build has no CUDA kernels"


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes(dtype: torch.dtype, p: float) -> None:
    grads = [random(n, dtype) for n in SIZES]
    stats = gradkern.measure([parameter(g) for g in grads], norm_type=p, count_zeros=True)
    for row, grad in enumerate(grads):
        assert_norm(stats.norm[row], reference_norm([grad], p), p)
        assert_norm(stats.l2_norm[row], reference_norm([grad], 2.0))
        assert_norm(stats.max_abs[row], reference_norm([grad], math.inf), math.inf)
    assert_norm(stats.total_norm, reference_norm(grads, p), p, total=True)
    assert stats.norm.dtype == (torch.float64 if is_wide(dtype) else torch.float32)
    assert stats.nonfinite.sum() == 0
    assert stats.zeros is not None
    assert stats.zeros.tolist() == [int((g == 0).sum()) for g in grads]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_no_overflow_and_no_underflow(dtype: torch.dtype, scale: float) -> None:
    grads = [random(5000, dtype, scale)]
    total = gradkern.get_total_norm(grads)
    assert_norm(total, reference_norm(grads, 2.0), total=True)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_no_overflow_and_no_underflow_in_float64(dtype: torch.dtype, scale: float) -> None:
    grads = [random(5000, dtype, scale), random(5000, dtype, 1.0)]
    for part in (grads[:1], grads):
        assert_norm(gradkern.get_total_norm(part), reference_norm(part, 2.0), total=True)


@pytest.mark.parametrize("dtype", REALS, ids=str)
def test_subnormals(dtype: torch.dtype) -> None:
    smallest = torch.finfo(dtype).smallest_normal
    grads = [(torch.randn(3000, dtype=torch.float64) * smallest / 8).to(dtype).cuda()]
    assert_norm(gradkern.get_total_norm(grads), reference_norm(grads, 2.0), total=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nonfinite_elements_are_counted(dtype: torch.dtype) -> None:
    grads = [random(10007, dtype) for _ in range(3)]
    grads[1][[0, 5000, 10006]] = math.inf
    grads[2][77] = math.nan
    stats = gradkern.measure([parameter(g) for g in grads])
    assert stats.nonfinite.tolist() == [0, 3, 1]
    assert math.isinf(stats.norm[1])
    assert math.isnan(stats.norm[2])
    assert math.isnan(stats.total_norm)
    assert math.isinf(stats.max_abs[1])
    assert math.isnan(stats.max_abs[2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_alignment_does_not_change_bits(dtype: torch.dtype) -> None:
    aligned = random(10007, dtype)
    want = gradkern.measure([parameter(aligned)], norm_type=1.0)
    for offset in range(1, 8):
        view = torch.empty(10007 + offset, dtype=dtype, device="cuda")[offset:].copy_(aligned)
        got = gradkern.measure([parameter(view)], norm_type=1.0)
        assert torch.equal(got.norm, want.norm)
        assert torch.equal(got.l2_norm, want.l2_norm)


def test_mixed_list_with_views_of_one_storage() -> None:
    bucket = random(30011, torch.float32)
    grads = [bucket[1:5000], bucket[5000:30009].view(89, 281).t(), random(33, torch.bfloat16, offset=3)]
    grads += [random(1000, torch.float16, offset=1), random(777, torch.complex64), random(5, torch.float64)]
    total = gradkern.get_total_norm(grads)
    assert total.dtype == torch.float64
    assert_norm(total, reference_norm(grads, 2.0), total=True)
    before = [g.clone() for g in grads]
    outside = bucket[[0, -2, -1]].clone()
    gradkern.clip_grad_norm_([parameter(g) for g in grads], 1.0)
    coef = 1.0 / (float(total) + 1e-6)
    for grad, old in zip(grads, before):
        torch.testing.assert_close(grad, old * coef, rtol=8e-3 if grad.element_size() == 2 else 1e-6, atol=0)
    assert torch.equal(bucket[[0, -2, -1]], outside)


@pytest.mark.parametrize("count", [2040, 2041, 2042, 2043, 5000])
def test_many_tensors(count: int) -> None:
    grads = [random(i % 7, torch.bfloat16 if i % 3 else torch.float32) for i in range(count)]
    stats = gradkern.measure([parameter(g) for g in grads])
    assert_norm(stats.total_norm, reference_norm(grads, 2.0), total=True)
    for row in (0, 1, 2, 2040 - 1, count - 1):
        assert_norm(stats.norm[row], reference_norm([grads[row]], 2.0))


def test_rows_without_gradient_and_repeated_rows() -> None:
    grad = random(1000, torch.float32)
    params = [parameter(grad), parameter(None), parameter(random(0, torch.float32))]
    stats = gradkern.measure([*params, params[0]])
    assert stats.has_grad == (True, False, True, True)
    assert stats.norm[1] == 0
    assert stats.norm[2] == 0
    assert stats.norm[3] == stats.norm[0]
    assert stats.total_norm == stats.norm[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scaling_gives_the_bits_of_the_cpu(dtype: torch.dtype) -> None:
    for n, offset in ((1, 0), (33, 1), (4097, 0), (10007, 3)):
        grad = random(n, dtype, offset=offset)
        host = parameter(grad.detach().cpu().clone())
        for total in (torch.tensor(3.7), torch.tensor(3.7, dtype=torch.float64)):
            gradkern.clip_grads_with_norm_([parameter(grad)], 1.0, total.cuda())
            gradkern.clip_grads_with_norm_([host], 1.0, total)
            assert torch.equal(bits(grad), bits(host.grad))


@pytest.mark.parametrize("dtype", REALS, ids=str)
def test_clamping_gives_the_bits_of_the_cpu(dtype: torch.dtype) -> None:
    for n, offset in ((1, 0), (33, 1), (10007, 3)):
        grad = random(n, dtype, offset=offset)
        grad[0] = math.nan
        host = parameter(grad.detach().cpu().clone())
        gradkern.clip_grad_value_([parameter(grad)], 0.7)
        gradkern.clip_grad_value_([host], 0.7)
        assert torch.equal(grad.cpu().nan_to_num(9), host.grad.nan_to_num(9))


@pytest.mark.parametrize("max_norm", [1e9, math.inf])
def test_nothing_is_written_when_nothing_is_clipped(max_norm: float) -> None:
    params = [parameter(random(5000, d)) for d in REALS]
    if max_norm == math.inf:
        params[0].grad[3] = math.nan
    before = [bits(p.grad) for p in params]
    gradkern.clip_grad_norm_(params, max_norm)
    assert all(torch.equal(bits(p.grad), old) for p, old in zip(params, before))


def test_split_functions_give_the_same_bits() -> None:
    one = [parameter(random(10007, torch.bfloat16)) for _ in range(3)]
    two = [parameter(p.grad.clone()) for p in one]
    total = gradkern.clip_grad_norm_(one, 1.0)
    again = gradkern.get_total_norm([p.grad for p in two])
    gradkern.clip_grads_with_norm_(two, 1.0, again)
    assert torch.equal(total, again)
    assert all(torch.equal(bits(a.grad), bits(b.grad)) for a, b in zip(one, two))


def test_agrees_with_torch() -> None:
    ours = [parameter(random(n, torch.float32)) for n in SIZES]
    theirs = [parameter(p.grad.clone()) for p in ours]
    got = gradkern.clip_grad_norm_(ours, 1.0)
    want = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=0)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-8)


def test_error_names_the_parameter_and_leaves_gradients_alone() -> None:
    params = [parameter(random(100, torch.float32)) for _ in range(3)]
    params[2].grad[[1, 2]] = math.inf
    before = [bits(p.grad) for p in params]
    with pytest.raises(RuntimeError, match=r"parameters\[2\] \(2 of 100 elements\)"):
        gradkern.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    assert all(torch.equal(bits(p.grad), old) for p, old in zip(params, before))


@pytest.mark.parametrize("policy", ["propagate", "zero", "skip", "raise"])
def test_policies_for_nonfinite_gradients(policy: str) -> None:
    params = [parameter(random(5000, torch.float32)) for _ in range(2)]
    params[1].grad[17] = math.nan
    before = [bits(p.grad) for p in params]
    clipper = gradkern.GradClipper(params, 1.0, on_nonfinite=policy)  # type: ignore[arg-type]
    if policy == "raise":
        with pytest.raises(RuntimeError, match="1 of 5000"):
            clipper.clip_()
        return
    stats = clipper.clip_()
    if policy == "propagate":
        assert all(p.grad.isnan().all() for p in params)
    elif policy == "zero":
        assert all((p.grad == 0).all() for p in params)
        assert stats.clip_coef == 0
    else:
        assert stats.skip_step is not None
        assert bool(stats.skip_step)
        assert all(torch.equal(bits(p.grad), old) for p, old in zip(params, before))


def test_fused_optimizer_skips_the_step_without_the_host() -> None:
    model = torch.nn.Linear(8, 8, device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    clipper = gradkern.GradClipper(model, 1.0, on_nonfinite="skip", optimizer=optimizer)
    model(torch.randn(4, 8, device="cuda")).sum().backward()
    model.weight.grad[0, 0] = math.inf
    before = model.weight.detach().clone()
    clipper.clip_()
    optimizer.step()
    assert torch.equal(model.weight, before)
    model.weight.grad[0, 0] = 0
    clipper.clip_()
    optimizer.step()
    assert not torch.equal(model.weight, before)


@pytest.mark.parametrize("make", [lambda g: g[::2], lambda g: g[:1].expand(50), lambda g: g.to_sparse()])
def test_layouts_without_a_kernel(make: object) -> None:
    grad = make(random(100, torch.float32))  # type: ignore[operator]
    dense = grad.to_dense() if grad.is_sparse else grad
    assert_norm(gradkern.get_total_norm([grad]), reference_norm([dense], 2.0), total=True)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_several_devices() -> None:
    grads = [random(5000, torch.float32), random(777, torch.bfloat16).to("cuda:1")]
    params = [parameter(g) for g in grads]
    stats = gradkern.GradClipper(params, 1.0).clip_()
    assert stats.total_norm.device == grads[0].device
    after = reference_norm([p.grad for p in params], 2.0)
    assert abs(after - 1) < 1e-3


def version_counts(params: list[torch.nn.Parameter]) -> list[int]:
    return [p.grad._version for p in params]


def raised(before: list[int], params: list[torch.nn.Parameter]) -> set[int]:
    return {after - count for after, count in zip(version_counts(params), before)}


@pytest.mark.parametrize("last", [None, "view"])
def test_a_write_increments_every_version_once(last: str | None) -> None:
    params = [parameter(random(9, torch.float32)) for _ in range(40)]
    if last == "view":  # is found when the others have been visited
        params.append(parameter(random(60, torch.float32).reshape(6, 10)[:, ::2]))
    clipper = gradkern.GradClipper(params, 1.0)
    for call in (lambda: gradkern.clip_grad_norm_(params, 1.0), clipper.clip_):
        before = version_counts(params)
        call()
        assert raised(before, params) == {1}


def test_a_call_that_does_not_write_increments_no_version() -> None:
    params = [parameter(random(9, torch.float32)) for _ in range(40)]
    before = version_counts(params)
    gradkern.clip_grad_norm_(params, math.inf)
    gradkern.measure(params)
    with pytest.raises(ValueError, match="max_norm"):
        C.clip_grad_norm_(params, -1.0, 2.0, False)
    with pytest.raises(TypeError, match="parameters\\[40\\]"):
        gradkern.clip_grad_norm_([*params, 1.0], 1.0)
    assert raised(before, params) == {0}


def test_gradients_on_the_same_memory_as_in_the_last_call() -> None:
    params = [parameter(random(100, torch.float32)) for _ in range(40)]
    for turn in range(6):
        if turn == 2:
            params[7].grad = params[3].grad  # listed twice from now on
        if turn == 4:
            params[7].grad = random(100, torch.float32)
        distinct = list({id(p.grad): p.grad for p in params}.values())
        for grad in distinct:
            grad.copy_(random(100, torch.float32))
        want = reference_norm(distinct, 2.0)
        assert_norm(gradkern.clip_grad_norm_(params, 1.0), want, total=True)
        assert abs(reference_norm(distinct, 2.0) - 1) < 1e-3
