"""Long lists, which are walked in runs by several threads."""

import copy

import pytest
import torch
from torch import nn

import gradkern
from gradkern.kernels.extension import EXTENSION

COUNT = 2000  # more than one thread takes


class Wrapped(nn.Parameter):
    """A subclass, whose `.grad` is read through Python."""


def parameters(seed=0, kind=nn.Parameter, special=()):
    generator = torch.Generator().manual_seed(seed)
    params = []
    for i in range(COUNT):
        size = i % 7 * 5 + (i % 3 == 0)
        param = (kind if i in special else nn.Parameter)(torch.zeros(size))
        param.grad = torch.randn(size, generator=generator)
        params.append(param)
    return params


def reference(grads):
    return float(torch.cat([g.double().flatten() for g in grads]).norm())


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def clipped(params, limit=1.0):
    """The norm and gradients of a call, and their expected values."""
    distinct = {id(p.grad): p.grad for p in params if p.grad is not None}
    before = {key: grad.double().clone() for key, grad in distinct.items()}
    versions = {key: grad._version for key, grad in distinct.items()}
    norm = reference(before.values())
    assert float(gradkern.clip_grad_norm_(params, limit)) == pytest.approx(norm, rel=2e-7)
    assert all(grad._version > versions[key] for key, grad in distinct.items())
    after, wanted = (
        torch.cat([g.flatten() for g in grads]) for grads in (distinct.values(), before.values())
    )
    torch.testing.assert_close(after.double(), wanted * (limit / (norm + 1e-6)), rtol=1e-6, atol=0)


def test_every_gradient_counts_and_is_scaled(threads):
    clipped(parameters())


def test_absent_gradients(threads):
    params = parameters()
    for i in range(0, COUNT, 3):
        params[i].grad = None
    clipped(params)


@pytest.mark.parametrize("positions", [(0, COUNT - 1), (63, 64), (5, 1500)])
def test_the_same_gradient_in_two_runs_counts_once(threads, positions):
    first, second = positions
    params = parameters()
    params[first] = nn.Parameter(torch.zeros(40))
    params[first].grad = torch.full((40,), 3.0)
    params[second] = params[first]
    clipped(params)


def test_two_views_of_one_memory(threads):
    params = parameters()
    for i in (10, 1900):
        params[i] = nn.Parameter(torch.zeros(6, 7))
    params[10].grad = torch.ones(6, 7)
    params[1900].grad = params[10].grad.view(6, 7)
    norm = reference([p.grad for p in params[:1900]] + [p.grad for p in params[1901:]])
    assert float(gradkern.clip_grad_norm_(params, 1e9)) == pytest.approx(norm, rel=2e-7)


@pytest.mark.parametrize("position", [0, 700, COUNT - 1])
def test_a_subclass_among_them(threads, position):
    clipped(parameters(kind=Wrapped, special={position}))


@pytest.mark.parametrize("position", [0, 700, COUNT - 1])
def test_a_gradient_that_is_not_dense_among_them(threads, position):
    params = parameters()
    params[position] = nn.Parameter(torch.zeros(8))
    params[position].grad = torch.arange(32.0)[::4]
    assert not EXTENSION.is_plain([p.grad for p in params])
    clipped(params)


@pytest.mark.parametrize("intruder", [None, "text", 3])
def test_what_is_no_parameter_is_named(threads, intruder):
    params = parameters()
    params[1234] = intruder
    before = [copy.deepcopy(p.grad) for p in params if isinstance(p, nn.Parameter)]
    with pytest.raises(TypeError, match=r"parameters\[1234\]"):
        gradkern.clip_grad_norm_(params, 1.0)
    after = [p.grad for p in params if isinstance(p, nn.Parameter)]
    assert all(torch.equal(a, b) for a, b in zip(after, before))


def test_none_where_tensors_are_measured(threads):
    grads = [p.grad for p in parameters()]
    with pytest.raises(TypeError, match=r"tensors\[700\]"):
        gradkern.get_total_norm([*grads[:700], None, *grads[701:]])
    rows = EXTENSION.measure_gradients([*grads[:700], None, *grads[701:]], 2.0, False, 1.0, None)
    assert rows["norm"][700] == 0 and rows["has_grad"][700] is False and rows["has_grad"][701] is True


def test_a_lazy_clone_is_given_memory_of_its_own(threads):
    params = parameters()
    params[999] = nn.Parameter(torch.zeros(30))
    original = torch.ones(30)
    params[999].grad = torch._lazy_clone(original)
    clipped(params)
    assert torch.equal(original, torch.ones(30))
