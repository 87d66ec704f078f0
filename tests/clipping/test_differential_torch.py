"""The same results as torch.nn.utils wherever torch is right, and the same signatures."""

from __future__ import annotations

import copy
import inspect
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import gradkern
from tests.support import reference as ref

NAMES = ("clip_grad_norm_", "get_total_norm", "clip_grads_with_norm_", "clip_grad_value_")


@pytest.mark.parametrize("name", NAMES)
def test_signatures(name):
    def shape(function):
        return [(p.name, p.default, p.kind) for p in inspect.signature(function).parameters.values()]

    theirs = shape(getattr(torch.nn.utils, name))
    ours = shape(getattr(gradkern, name))
    assert ours[: len(theirs)] == theirs
    # What gradkern adds cannot be given by position and is off by default.
    assert all(
        kind is inspect.Parameter.KEYWORD_ONLY and default is None for _, default, kind in ours[len(theirs) :]
    )


def model_with_gradients(seed, scale, dtype=torch.float32):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(20, 8), nn.LSTM(8, 8), nn.Flatten()).to(dtype)
    head = nn.Linear(8, 5).to(dtype)
    out, _ = model[1](model[0](torch.randint(0, 20, (6, 2))))
    (head(out).square().sum() * scale).backward()
    model.add_module("head", head)
    model.add_module("unused", nn.Linear(3, 3))
    return model


def assert_close(ours, theirs, tolerance):
    for a, b in zip(ours.parameters(), theirs.parameters()):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=tolerance, atol=0)


ORDERS = [2.0, 1, math.inf, "inf", 3.0, 0.5]
#: torch rounds the norm and the coefficient to the gradients' type and accumulates in float32.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 2.0**-6}


@pytest.mark.parametrize(
    ("p", "foreach"),
    [(2.0, None), (2.0, False), (2.0, True), *zip(ORDERS[1:], itertools.cycle([False, True]))],
)
@pytest.mark.parametrize("max_norm", [1e-2, 1.0, 1e6, 0])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_clip_grad_norm(dtype, max_norm, p, foreach):
    ours = model_with_gradients(1, 5.0, dtype)
    theirs = copy.deepcopy(ours)
    for a, b in zip(ours.parameters(), theirs.parameters()):
        b.grad = None if a.grad is None else a.grad.clone()
    got = gradkern.clip_grad_norm_(ours.parameters(), max_norm, p, foreach=foreach)
    want = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm, p, foreach=foreach)
    torch.testing.assert_close(got.double(), want.double(), rtol=TOLERANCE[dtype], atol=0)
    assert_close(ours, theirs, 2 * TOLERANCE[dtype])


@given(
    st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40), min_size=1, max_size=6),
    st.floats(1e-3, 1e4),
    st.sampled_from([2.0, 1.0, math.inf]),
)
def test_random_lists(rows, max_norm, p):
    def build():
        params = [nn.Parameter(torch.zeros(len(r))) for r in rows]
        for q, r in zip(params, rows):
            q.grad = torch.tensor(r)
        return params

    ours, theirs = build(), build()
    got = gradkern.clip_grad_norm_(ours, max_norm, p)
    want = torch.nn.utils.clip_grad_norm_(theirs, max_norm, p)
    if ref.total_norm([q.grad for q in build()], p) < 1e-15:
        return  # torch's squares underflow, so torch is wrong here
    torch.testing.assert_close(got, want, rtol=2e-6, atol=0)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a.grad, b.grad, rtol=4e-6, atol=1e-44)


@pytest.mark.parametrize("p", [2.0, 1.0, math.inf, 3.0])
def test_get_total_norm(p):
    grads = [torch.randn(50, 3), torch.randn(7), torch.randn(1)]
    torch.testing.assert_close(
        gradkern.get_total_norm(grads, p), torch.nn.utils.get_total_norm(grads, p), rtol=2e-6, atol=0
    )


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_clip_grads_with_norm(kind):
    ours = model_with_gradients(2, 3.0)
    theirs = copy.deepcopy(ours)
    for a, b in zip(ours.parameters(), theirs.parameters()):
        b.grad = None if a.grad is None else a.grad.clone()
    gradkern.clip_grads_with_norm_(ours.parameters(), 0.3, kind(12.5))
    torch.nn.utils.clip_grads_with_norm_(theirs.parameters(), 0.3, torch.tensor(12.5))
    assert_close(ours, theirs, 4e-7)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("limit", [0.0, 0.01, 1.0, 1e9])
def test_clip_grad_value(limit, dtype):
    ours = model_with_gradients(3, 5.0, dtype)
    theirs = copy.deepcopy(ours)
    for a, b in zip(ours.parameters(), theirs.parameters()):
        b.grad = None if a.grad is None else a.grad.clone()
    gradkern.clip_grad_value_(ours.parameters(), limit)
    torch.nn.utils.clip_grad_value_(theirs.parameters(), limit)
    for a, b in zip(ours.parameters(), theirs.parameters()):
        assert a.grad is None or torch.equal(a.grad, b.grad)


def test_a_training_run_ends_in_the_same_place():
    def train(clip):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        x, y = torch.randn(64, 10), torch.randn(64, 1)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            clip(model.parameters(), 0.1)
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torch.testing.assert_close(
        train(gradkern.clip_grad_norm_), train(torch.nn.utils.clip_grad_norm_), rtol=1e-4, atol=1e-5
    )


CONTAINERS = {
    "a tensor": lambda m: m.weight,
    "a list": lambda m: list(m.parameters()),
    "a tuple": lambda m: tuple(m.parameters()),
    "a generator": lambda m: m.parameters(),
    "a set": lambda m: set(m.parameters()),
    "dict values": lambda m: dict(m.named_parameters()).values(),
    "a ParameterList": lambda m: nn.ParameterList(m.parameters()),
    "a filter": lambda m: filter(lambda p: p.requires_grad, m.parameters()),
}


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS.keys())
def test_every_container_torch_takes(container):
    model = nn.Linear(3, 2)
    model(torch.ones(4, 3)).square().sum().backward()
    want = torch.nn.utils.clip_grad_norm_(container(model), math.inf)
    torch.testing.assert_close(gradkern.clip_grad_norm_(container(model), math.inf), want)
    assert gradkern.clip_grad_value_(container(model), 1e9) is None
    assert gradkern.clip_grads_with_norm_(container(model), 1.0, torch.tensor(0.5)) is None


def test_numbers_torch_gets_wrong():
    """The reason for tolerances: torch's own errors in current versions."""
    tiny, huge = torch.full((100,), 1e-25), torch.full((100,), 1e20)
    assert torch.nn.utils.get_total_norm([tiny]).item() == 0.0
    assert torch.nn.utils.get_total_norm([huge]).item() == math.inf
    ref.assert_norm(
        gradkern.get_total_norm([tiny]).item(), ref.total_norm([tiny]), wide=False, ulp=ref.NORM_ULP
    )
    ref.assert_norm(
        gradkern.get_total_norm([huge]).item(), ref.total_norm([huge]), wide=False, ulp=ref.NORM_ULP
    )
    half = torch.full((5_000,), 31.7, dtype=torch.bfloat16)
    assert ref.ulp_distance(torch.nn.utils.get_total_norm([half]).item(), ref.total_norm([half])) > 1000
    ref.assert_norm(
        gradkern.get_total_norm([half]).item(), ref.total_norm([half]), wide=False, ulp=ref.NORM_ULP
    )
