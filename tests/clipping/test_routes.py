"""Limits, overflowing norms, default devices and lists without gradients: the same on every route."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import gradkern
from tests.support.strategies import parameters

#: Finite, with a norm of 6.8e38: beyond the largest float32.
HUGE = [3.4e38] * 4


def huge():
    return parameters([torch.tensor(HUGE[:2]), torch.tensor(HUGE[2:])])


def assert_halves(params):
    for p in params:
        torch.testing.assert_close(p.grad, torch.full((2,), 0.5), rtol=1e-5, atol=0)


def fused_sgd(params):
    return torch.optim.SGD(params, lr=1.0, fused=True)


def fold_and_step(params):
    """What fused SGD with lr=1 subtracts from zeros is the gradient that it used."""
    optimizer = fused_sgd(params)
    gradkern.GradClipper(params, 1.0, optimizer=optimizer, fold=True).clip_()
    before = [p.detach().clone() for p in params]
    optimizer.step()
    for p, old in zip(params, before):
        p.grad = old - p.detach()


def scaled(params):
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.ones(()))
    gradkern.GradClipper(params, 1.0).clip_(scaler=scaler, optimizer=fused_sgd(params))


class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
    """Operations go through Python, so that no kernel takes the list."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def fallback(clip):
    def run(params):
        with Recorder():
            clip(params)

    return run


ROUTES = {
    "kernels": lambda ps: gradkern.clip_grad_norm_(ps, 1.0),
    "torch": fallback(lambda ps: gradkern.clip_grad_norm_(ps, 1.0)),
    "clipper": lambda ps: gradkern.GradClipper(ps, 1.0).clip_(),
    "clipper over torch": fallback(lambda ps: gradkern.GradClipper(ps, 1.0).clip_()),
    "scaler": scaled,
    "fold": fold_and_step,
    "groups": lambda ps: gradkern.GradClipper(ps, 1.0, counted_elsewhere=lambda name: False).clip_(),
}


@pytest.mark.parametrize("clip", ROUTES.values(), ids=ROUTES)
def test_finite_gradients_with_an_infinite_norm_are_scaled(clip):
    params = huge()
    clip(params)
    assert_halves(params)


def test_the_split_functions_see_only_what_was_returned():
    params = huge()
    total = gradkern.get_total_norm([p.grad for p in params])
    assert total.item() == math.inf
    gradkern.clip_grads_with_norm_(params, 1.0, total)
    assert all(p.grad.tolist() == [0.0, 0.0] for p in params)


@pytest.mark.parametrize("value", [-1, -0.5, torch.tensor(-1.0), None, "None", ""])
@pytest.mark.parametrize("name", ["max_norm", "clip_value", "total_norm", "GradClipper"])
def test_nonsense_limits_are_errors_and_change_nothing(name, value):
    params = parameters([torch.tensor([2.0, -3.0])])
    calls = {
        "max_norm": lambda: gradkern.clip_grad_norm_(params, value),
        "clip_value": lambda: gradkern.clip_grad_value_(params, value),
        "total_norm": lambda: gradkern.clip_grads_with_norm_(params, 1.0, value),
        "GradClipper": lambda: gradkern.GradClipper(params, value),
    }
    with pytest.raises((TypeError, ValueError), match="max_norm" if name == "GradClipper" else name):
        calls[name]()
    assert params[0].grad.tolist() == [2.0, -3.0]


def test_a_negative_norm_on_a_device_changes_nothing():
    """Its sign is not known to the host; here it goes through torch's operations."""
    from gradkern.kernels.scale import coefficient

    assert coefficient(torch.tensor([-1.0, 5.0, math.nan, 0.0]), 1.0).tolist()[:2] == [1.0, 1 / (5 + 1e-6)]
    params = parameters([torch.tensor([2.0, -3.0])])
    from gradkern.kernels import torch_ops

    torch_ops.clip_grads_with_norm_(params, 1.0, torch.tensor(-1.0))
    assert params[0].grad.tolist() == [2.0, -3.0]


def everything(params, model_grads):
    stats = gradkern.measure(params)
    gradkern.clip_grads_with_norm_(params, 1e9, 5.0)
    clipper = gradkern.GradClipper(params, 1e9, on_nonfinite="skip").clip_()
    return [
        stats.rms,
        stats.by_layer(0).norm,
        gradkern.clip_grad_norm_(params, 1e9),
        gradkern.get_total_norm(model_grads, 1.5),
        clipper.total_norm,
        clipper.skip_step,
        gradkern.GradClipper(params, 1e9, counted_elsewhere=lambda name: False).clip_().clip_coef,
    ]


@pytest.mark.parametrize("route", [lambda f: f, fallback], ids=["kernels", "torch"])
def test_results_follow_the_gradients_and_not_the_default_device_or_dtype(route):
    params = parameters([torch.tensor([3.0, 4.0]), torch.tensor([12.0])])
    grads = [p.grad for p in params]
    found = []
    with torch.device("meta"):
        route(lambda ps: found.extend(everything(ps, grads)))(params)
    assert {t.device.type for t in found} == {"cpu"}
    torch.set_default_dtype(torch.float64)
    try:
        assert gradkern.clip_grad_norm_(params, 1.0).dtype == torch.float32
        assert gradkern.clip_grad_norm_([nn.Parameter(torch.zeros(2, dtype=torch.float32))], 1.0).dtype == (
            torch.float32
        )
    finally:
        torch.set_default_dtype(torch.float32)


def test_without_gradients_the_zero_lies_with_the_parameters():
    param = nn.Parameter(torch.zeros(3, device="meta"))
    assert gradkern.clip_grad_norm_([param], 1.0).device.type == "meta"
    assert gradkern.measure([param]).total_norm.device.type == "meta"
    stats = gradkern.GradClipper([param], 1.0).clip_()
    assert {stats.total_norm.device.type, stats.norm.device.type, stats.clip_coef.device.type} == {"meta"}
    assert gradkern.clip_grad_norm_([], 1.0).device.type == "cpu"


SAME_MEMORY = {
    "twice": (lambda x: [x, x], 5.0),
    "the same view twice": (lambda x: [x.view(2), x.view(2)], 5.0),
    "another shape of it": (lambda x: [x, x.view(1, 2)], math.sqrt(50)),
    "a part of it": (lambda x: [x, x[1:]], math.sqrt(41)),
}


@pytest.mark.parametrize("route", [lambda f: f, fallback], ids=["kernels", "torch"])
@pytest.mark.parametrize(("views", "norm"), SAME_MEMORY.values(), ids=SAME_MEMORY)
def test_memory_that_is_listed_more_than_once(route, views, norm):
    """The same view counts once, other views each in full; each location is scaled once."""
    memory = torch.tensor([3.0, 4.0])
    found = []
    params = parameters(views(memory))
    route(lambda ps: found.append(gradkern.measure(ps).total_norm))(params)
    assert found[0].item() == pytest.approx(norm, rel=1e-6)
    gradkern.clip_grad_norm_(params, norm / 2)
    torch.testing.assert_close(memory, torch.tensor([1.5, 2.0]))
