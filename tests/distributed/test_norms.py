"""The total norm and the clip, for every partition, against float64 on one process."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

import gradkern
from gradkern.distributed import explain_norm
from tests.distributed import models

ULP = 2.0**-23


def close(got: torch.Tensor, expected: float) -> None:
    value = float(models.full_value(got))
    assert abs(value - expected) <= 2 * ULP * abs(expected), (value, expected)


def clip_job(partition: str, dtype: torch.dtype, norm_type: float, scale: float) -> tuple[float, str]:
    model = models.PARTITIONS[partition](models.build(dtype=dtype))
    plain = models.build(dtype=dtype)
    gradients = models.full_gradients(plain, scale)
    models.fill(model, gradients)
    expected = models.reference(gradients, norm_type)
    grads = [p.grad for p in model.parameters()]
    close(gradkern.get_total_norm(grads, norm_type), expected)

    max_norm = expected / 3
    total = gradkern.clip_grad_norm_(model.parameters(), max_norm, norm_type)
    close(total, expected)
    assert total.dtype == torch.float32
    coef = max_norm / (float(models.full_value(total)) + 1e-6)
    for name, p in model.named_parameters():
        want = (gradients[name].double() * coef).to(dtype)
        got = models.local_value(p.grad)
        torch.testing.assert_close(got, models.part_of(want, p), rtol=torch.finfo(dtype).eps, atol=0)
    return float(models.full_value(total)), type(total).__name__


CASES = [
    (world, partition)
    for partition in models.PARTITIONS
    for world in (2, 4)
    if world == 4 or partition not in ("fsdp+tp", "hsdp", "two meshes")
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("world", "partition"), CASES)
def test_norm_and_clip_agree_with_one_process(ranks, world, partition, dtype):
    answers = ranks(world)(clip_job, partition=partition, dtype=dtype, norm_type=2.0, scale=1.0)
    assert len(set(answers)) == 1, answers  # the same bits and the same type on every rank
    single = partition in ("fsdp", "hsdp", "by hand")
    assert answers[0][1] == ("DTensor" if single else "Tensor")


@pytest.mark.parametrize("norm_type", [1.0, 3.0, 0.5, -2.0, 0.0, math.inf, -math.inf])
@pytest.mark.parametrize("partition", ["fsdp+tp", "some blocks", "by hand"])
def test_other_orders(ranks, partition, norm_type):
    ranks(4)(orders_job, partition=partition, norm_type=norm_type)


def orders_job(partition: str, norm_type: float) -> None:
    model = models.PARTITIONS[partition](models.build())
    gradients = models.full_gradients(models.build())
    models.fill(model, gradients)
    total = gradkern.clip_grad_norm_(model.parameters(), math.inf, norm_type)
    close(total, models.reference(gradients, norm_type))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_no_overflow_and_no_underflow(ranks, scale):
    ranks(4)(clip_job, partition="fsdp+tp", dtype=torch.float32, norm_type=2.0, scale=scale)


def float64_job(scale: float) -> None:
    model = models.as_fsdp(models.build(dtype=torch.float64))
    gradients = models.full_gradients(models.build(dtype=torch.float64), scale)
    models.fill(model, gradients)
    for norm_type in (2.0, 3.0):
        total = gradkern.clip_grad_norm_(model.parameters(), math.inf, norm_type)
        assert total.dtype == torch.float64
        expected = models.reference(gradients, norm_type)
        assert abs(float(total.full_tensor()) - expected) <= 1e-14 * expected


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_float64_beyond_the_range_of_its_squares(ranks, scale):
    ranks(2)(float64_job, scale=scale)


def nonfinite_job(value: float, norm_type: float, rank: int) -> float:
    model = models.as_fsdp(models.build())
    models.fill(model, models.full_gradients(models.build()))
    if dist.get_rank() == rank:
        model[1].up.weight.grad._local_tensor[0, 0] = value
    before = [p.grad.to_local().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match="is non-finite, so it cannot be clipped"):
        gradkern.clip_grad_norm_(model.parameters(), 1.0, norm_type, error_if_nonfinite=True)
    for p, b in zip(model.parameters(), before):
        torch.testing.assert_close(p.grad.to_local(), b, rtol=0, atol=0, equal_nan=True)
    return float(gradkern.clip_grad_norm_(model.parameters(), math.inf, norm_type).full_tensor())


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, math.inf])
def test_nan_on_one_rank_reaches_all(ranks, norm_type, rank):
    assert all(math.isnan(x) for x in ranks(2)(nonfinite_job, value=math.nan, norm_type=norm_type, rank=rank))


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, math.inf])
def test_inf_on_one_rank_reaches_all(ranks, norm_type):
    assert ranks(2)(nonfinite_job, value=-math.inf, norm_type=norm_type, rank=1) == [math.inf, math.inf]


def no_gradient_job(partition: str, without: list[int]) -> tuple[float, str]:
    model = models.PARTITIONS[partition](models.build())
    gradients = models.full_gradients(models.build())
    models.fill(model, gradients)
    if dist.get_rank() in without:
        model.zero_grad(set_to_none=True)
    total = gradkern.clip_grad_norm_(model.parameters(), math.inf)
    return float(models.full_value(total)), type(total).__name__


@pytest.mark.parametrize("without", [[0], [1, 3], [0, 1, 2, 3]])
def test_ranks_without_any_gradient_take_part(ranks, without):
    answers = ranks(4)(no_gradient_job, partition="fsdp", without=without)
    assert len(set(answers)) == 1
    assert answers[0][1] == "DTensor"
    assert (answers[0][0] == 0.0) == (len(without) == 4)


def partial_job() -> None:
    mesh = models.mesh_1d()
    terms = torch.randn(5, 3) * (1 + dist.get_rank())
    total = terms.clone()
    dist.all_reduce(total)
    p = torch.nn.Parameter(models.distribute_tensor(torch.zeros(5, 3), mesh, [models.Replicate()]))
    q = torch.nn.Parameter(models.distribute_tensor(torch.zeros(()), mesh, [models.Replicate()]))
    p.grad = DTensor.from_local(terms.clone(), mesh, [models.Partial()])
    q.grad = DTensor.from_local(torch.tensor(float(dist.get_rank())), mesh, [models.Partial()])
    both = {"p": total, "q": torch.tensor(float(sum(range(dist.get_world_size()))))}
    expected = models.reference(both)
    audit = explain_norm([("p", p), ("q", q)])
    here = torch.tensor([row.counted_here for row in audit.parameters])
    dist.all_reduce(here)
    assert here.tolist() == [15, 1]
    close(gradkern.clip_grad_norm_([p, q], expected / 2), expected)
    torch.testing.assert_close(p.grad.full_tensor(), total / 2)
    message = r"\[clip_grad_value_\] parameters\[0\]: expected a reduced gradient"
    with pytest.raises(ValueError, match=message):
        gradkern.clip_grad_value_([p, q], 0.1)


@pytest.mark.parametrize("world", [2, 4])
def test_partial_gradients_are_added_before_they_are_counted(ranks, world):
    ranks(world)(partial_job)


def uneven_audit_job() -> None:
    rank, mesh = dist.get_rank(), models.init_device_mesh("cpu", (2,))
    rows = (1, 4)[rank]
    p = torch.nn.Parameter(
        DTensor.from_local(torch.ones(rows, 7), mesh, [models.Shard(0)], shape=(5, 7), stride=(7, 1))
    )
    p.grad = DTensor.from_local(torch.ones(rows, 7), mesh, [models.Shard(0)], shape=(5, 7), stride=(7, 1))
    assert explain_norm([p]).counted_here == 7 * rows
    close(gradkern.clip_grad_norm_([p], 100.0), 35**0.5)
    with pytest.raises(
        TypeError, match=r"\[explain_norm\] process_group: expected .*, got DeviceMesh; pass mesh"
    ):
        explain_norm([p], process_group=mesh)
    with pytest.raises(ValueError, match=r"\[explain_norm\] in_process_group: has no effect without"):
        explain_norm([p], in_process_group=lambda name: True)


def test_shards_made_by_hand_are_counted_as_they_are(ranks):
    ranks(2)(uneven_audit_job)


def split_functions_job() -> None:
    once, twice = (models.as_fsdp_tp(models.build()) for _ in range(2))
    gradients = models.full_gradients(models.build())
    models.fill(once, gradients)
    models.fill(twice, gradients)
    gradkern.clip_grad_norm_(once.parameters(), 0.5)
    total = gradkern.get_total_norm([p.grad for p in twice.parameters()])
    gradkern.clip_grads_with_norm_(twice.parameters(), 0.5, total)
    for a, b in zip(once.parameters(), twice.parameters()):
        assert torch.equal(models.local_value(a.grad), models.local_value(b.grad))
    versions = [p.grad._version for p in once.parameters()]
    gradkern.clip_grad_norm_(once.parameters(), 1e9)
    assert versions == [p.grad._version for p in once.parameters()]  # nothing to clip, nothing written


def test_split_functions_give_the_same_bits(ranks):
    ranks(4)(split_functions_job)


def value_job() -> None:
    model = models.as_tp(models.build())
    gradients = models.full_gradients(models.build())
    models.fill(model, gradients)
    gradkern.clip_grad_value_(model.parameters(), 0.25)
    for name, p in model.named_parameters():
        assert torch.equal(models.local_value(p.grad), models.part_of(gradients[name], p).clamp(-0.25, 0.25))


def test_clip_grad_value(ranks):
    ranks(2)(value_job)


def tied_job() -> None:
    model = models.as_fsdp(models.build())
    gradients = models.full_gradients(models.build())
    models.fill(model, gradients)
    expected = models.reference(gradients)
    listed = [*model.parameters(), *model.parameters()]
    close(gradkern.clip_grad_norm_(listed, expected / 2), expected)
    first = next(iter(model.named_parameters()))
    torch.testing.assert_close(first[1].grad.full_tensor(), gradients[first[0]] / 2, rtol=1e-5, atol=0)


def test_a_parameter_listed_twice_counts_once(ranks):
    ranks(2)(tied_job)


def partial_twice_job() -> None:
    mesh = models.mesh_1d()
    p = torch.nn.Parameter(DTensor.from_local(torch.zeros(16), mesh, [models.Replicate()]))
    p.grad = DTensor.from_local(torch.ones(16), mesh, [models.Partial()])  # 2 everywhere, once added
    close(gradkern.clip_grad_norm_([p, p], math.inf), 8.0)
    stats = gradkern.GradClipper([("a", p), ("b", p)], math.inf).clip_()
    close(stats.total_norm, 8.0)
    assert stats.norm.tolist() == [8.0, 8.0]


def test_a_partial_gradient_listed_twice_counts_once(ranks):
    ranks(2)(partial_twice_job)
