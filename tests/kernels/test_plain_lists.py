"""Plain lists of CPU gradients are checked in the same walk, and borrowed (PlainGradients)."""

from __future__ import annotations

import gc

import numpy
import pytest
import torch

from gradkern.kernels.extension import EXTENSION

pytestmark = pytest.mark.skipif(EXTENSION is None, reason="needs the compiled extension")


def is_plain(*grads):
    return EXTENSION.is_plain(grads)


def gradients_of_backward(dtype=torch.float32):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)).to(dtype)
    model(torch.ones(2, 3, dtype=dtype)).sum().backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gradients_of_a_backward_pass(dtype):
    assert is_plain(*gradients_of_backward(dtype))


def test_those_of_autocast():
    layer = torch.nn.Linear(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.ones(2, 3)).sum().backward()
    assert is_plain(layer.weight.grad, layer.bias.grad)


def test_absent_empty_and_repeated_ones():
    grad = torch.ones(3)
    assert is_plain(None, torch.ones(0), grad, grad)


def test_transposed_ones_are_dense():
    assert is_plain(torch.ones(3, 4).t())


@pytest.mark.parametrize(
    "grad",
    [
        torch.ones(6)[::2],
        torch.ones(6)[1:],
        torch.ones(1).expand(4),
        torch.ones(3, dtype=torch.complex64).conj(),
        torch.eye(2).to_sparse(),
        torch.ones(2, device="meta"),
        torch.from_numpy(numpy.ones(4, numpy.float32)),
    ],
    ids=["strided", "offset", "expanded", "conjugated", "sparse", "meta", "foreign memory"],
)
def test_others_take_the_long_way(grad):
    assert not is_plain(torch.ones(2), grad)


def test_two_views_of_one_memory_take_the_long_way():
    grad = torch.ones(6)
    assert not is_plain(grad, grad.view(2, 3))


def norm_of(*grads):
    return float(EXTENSION.get_total_norm(grads, 2.0, False))


def test_a_list_like_the_last_one_is_searched_again_where_memory_has_changed():
    one, two = torch.tensor([3.0]), torch.tensor([4.0])
    assert [norm_of(one, two) for _ in range(2)] == [5, 5]
    assert [norm_of(one, one) for _ in range(2)] == [3, 3]  # a repeated gradient counts once
    assert [norm_of(one, two) for _ in range(2)] == [5, 5]
    assert norm_of(one, two.view(1, 1)) == 5  # another tensor of the same memory
    assert not is_plain(two.view(1, 1), two)
    assert norm_of(one, two) == 5
    one.fill_(12)
    assert norm_of(one, torch.tensor([5.0], dtype=torch.float64)) == 13


def test_columns_of_lists_of_the_same_sizes():
    def columns(*grads):
        params = [torch.nn.Parameter(torch.zeros(n)) for n in (2, 3)]
        for param, grad in zip(params, grads):
            param.grad = grad
        found = EXTENSION.measure(params, 2.0, False, 1.0, None)
        return found["has_grad"], found["numel"]

    assert columns(torch.ones(2), torch.ones(3)) == ((True, True), (2, 3))
    assert columns(torch.ones(2), None) == ((True, False), (2, 3))
    assert columns(torch.ones(2), torch.ones(3)) == ((True, True), (2, 3))


class Freeing:
    """Frees the gradients, and uses their memory, when the collector finds it."""

    def __init__(self, params):
        self.params, self.cycle = params, self

    def __del__(self):
        for param in self.params:
            param.grad = None
        self.params[0].other = [torch.zeros(13) for _ in range(80)]


def test_columns_when_the_collector_frees_gradients():
    params = [torch.nn.Parameter(torch.zeros(50)) for _ in range(4)]
    before, enabled = gc.get_threshold(), gc.isenabled()
    try:
        for objects in range(1, 60):  # the collector runs after so many
            gc.disable()
            for param in params:
                param.grad = torch.ones(50)
            params[1].grad = params[0].grad
            Freeing(params)
            gc.set_threshold(gc.get_count()[0] + objects, 10, 10)
            gc.enable()
            columns = EXTENSION.measure(params, 2.0, False, 1.0, None)
            gc.disable()
            assert (columns["numel"], columns["has_grad"]) == ((50,) * 4, (True,) * 4)
            gc.collect()
    finally:
        gc.set_threshold(*before)
        if enabled:
            gc.enable()
