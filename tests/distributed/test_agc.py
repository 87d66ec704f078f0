"""AGC where ranks hold parts of a unit: tensor parallelism along the dimensions over which its norm is
taken."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import gradkern
from gradkern.policies import AGC
from tests.distributed import models


def parameter(value: torch.Tensor, gradient: torch.Tensor, placement: object) -> nn.Parameter:
    mesh = models.mesh_1d()
    p = nn.Parameter(distribute_tensor(value, mesh, [placement]))
    p.grad = distribute_tensor(gradient, mesh, [placement])
    return p


def cut_units_job() -> list[int]:
    """Columns of a matrix, and a vector, on two ranks; a matrix of which each has whole rows."""
    torch.manual_seed(0)
    shapes, placements = [(3, 4), (4, 2), (6,)], [Shard(1), Shard(0), Shard(0)]
    values = [torch.randn(shape) for shape in shapes]
    gradients = [torch.randn(shape) for shape in shapes]
    params = [parameter(v, g, at) for v, g, at in zip(values, gradients, placements)]
    plain = [nn.Parameter(v.clone()) for v in values]
    for p, g in zip(plain, gradients):
        p.grad = g.clone()
    clipper = gradkern.GradClipper(params, policy=AGC(0.1))
    reductions, real = [], dist.all_reduce

    def counted(tensor: torch.Tensor, *args: object, **options: object) -> object:
        reductions.append(tensor.numel())
        return real(tensor, *args, **options)

    dist.all_reduce = counted
    try:
        clipper.policies[""].apply_("test", params, [p.grad._local_tensor for p in params], ["a", "b", "c"])
    finally:
        dist.all_reduce = real
    gradkern.GradClipper(plain, policy=AGC(0.1)).clip_()
    for p, q in zip(params, plain):
        torch.testing.assert_close(p.grad.full_tensor(), q.grad, rtol=1e-6, atol=0)
    return reductions


def test_cut_units_take_one_reduction_of_their_squares(ranks):
    # Weights and gradients of three rows and one vector; then before and after of each gradient.
    assert ranks(2)(cut_units_job) == [[2 * 3 + 2 * 1, 3 * 2]] * 2


def partial_job() -> tuple[str, bool]:
    mesh = models.mesh_1d()
    p = nn.Parameter(distribute_tensor(torch.ones(2, 2), mesh, [Replicate()]))
    p.grad = DTensor.from_local(torch.full((2, 2), 5.0), mesh, [Partial()])
    clipper = gradkern.GradClipper([("layer.weight", p)], policy=AGC(0.1))
    with pytest.raises(ValueError, match="policy AGC") as caught:
        clipper.clip_()
    return str(caught.value), bool((p.grad._local_tensor == 5.0).all())


def other_placement_job() -> tuple[str, bool]:
    mesh = models.mesh_1d()
    p = nn.Parameter(distribute_tensor(torch.ones(2, 2), mesh, [Shard(0)]))
    p.grad = distribute_tensor(torch.full((2, 2), 5.0), mesh, [Replicate()])
    clipper = gradkern.GradClipper([("layer.weight", p)], policy=AGC(0.1))
    with pytest.raises(ValueError, match="with the placements of its parameter") as caught:
        clipper.clip_()
    return str(caught.value), bool((p.grad._local_tensor == 5.0).all())


def test_a_gradient_that_is_placed_otherwise_than_its_weights_is_named(ranks):
    for message, unchanged in ranks(2)(other_placement_job):
        assert "'layer.weight'" in message and "Replicate" in message and "Shard" in message
        assert unchanged


def whole_units_job() -> tuple[list[float], list[float]]:
    """Rows over two ranks, of which one has none of the last, beside a replica and a plain parameter."""
    torch.manual_seed(1)
    shapes, placements = [(5, 4), (4, 3), (3, 2), (1, 6)], [Shard(0), Replicate(), None, Shard(0)]
    values = [torch.randn(shape) for shape in shapes]
    gradients = [torch.randn(shape) * 0.3 for shape in shapes]
    plain = [nn.Parameter(v.clone()) for v in values]
    params = []
    for p, g, at in zip(plain, gradients, placements):
        params.append(nn.Parameter(p.detach().clone()) if at is None else parameter(p.detach(), g, at))
        params[-1].grad = g.clone() if at is None else params[-1].grad
        p.grad = g.clone()
    names = ["a", "b", "c", "d"]
    stats = gradkern.GradClipper(list(zip(names, params)), policy=AGC(0.1)).clip_()
    expected = gradkern.GradClipper(list(zip(names, plain)), policy=AGC(0.1)).clip_()
    for p, q in zip(params, plain):
        grad = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
        torch.testing.assert_close(grad, q.grad, rtol=1e-6, atol=0)
    return stats.factor.tolist(), expected.factor.tolist()


def test_whole_units_of_shards_have_the_factors_of_one_process(ranks):
    for factors, expected in ranks(2)(whole_units_job):
        assert factors == pytest.approx(expected, rel=1e-6)


def test_a_placement_that_cannot_be_served_is_named(ranks):
    for message, unchanged in ranks(2)(partial_job):
        assert "'layer.weight': the policy AGC needs a reduced gradient" in message and "Partial" in message
        assert unchanged
