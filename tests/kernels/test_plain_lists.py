"""Plain lists of CPU gradients are checked in the same walk, and borrowed (PlainGradients)."""

from __future__ import annotations

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
