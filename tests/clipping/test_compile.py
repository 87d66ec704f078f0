"""The dispatcher's contract (opcheck), and torch.compile without a graph break."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import gradkern
from tests.support import reference as ref
from tests.support.strategies import parameters

ops = torch.ops.gradkern


def grads(dtype=torch.float32):
    return [torch.randn(5, 3, dtype=dtype), torch.randn(7, dtype=dtype), torch.randn(0, dtype=dtype)]


OPCHECKS = {
    "total_norm": lambda g: (ops.total_norm, (g, 2.0)),
    "total_norm of order 3": lambda g: (ops.total_norm, (g, 3.0)),
    "clip_": lambda g: (ops.clip_, (g, 0.1, 2.0, False)),
    "total_norm for a decision": lambda g: (ops.total_norm, (g, 2.0, True)),
    "clip_ for a decision": lambda g: (ops.clip_, (g, 0.1, 2.0, False, True)),
    "clip_ that writes nothing": lambda g: (ops.clip_, (g, math.inf, 2.0, True)),
    "scale_": lambda g: (ops.scale_, (g, torch.tensor(0.1, dtype=torch.float64))),
    "clip_value_": lambda g: (ops.clip_value_, (g, 0.1)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("make", OPCHECKS.values(), ids=OPCHECKS.keys())
def test_opcheck(make, dtype):
    operator, args = make(grads(dtype))
    torch.library.opcheck(operator.default, args)


def test_every_operator_is_checked():
    names = {n for n in dir(ops) if isinstance(getattr(ops, n), torch._ops.OpOverloadPacket)}
    schemas = {
        s.name.split("::")[1] for s in torch._C._jit_get_all_schemas() if s.name.startswith("gradkern::")
    }
    assert schemas == {make(grads())[0].__name__ for make in OPCHECKS.values()}
    assert names <= schemas


def test_declared_mutation():
    for name, mutates in {
        "total_norm": False,
        "clip_": True,
        "scale_": True,
        "clip_value_": True,
    }.items():
        assert getattr(ops, name).default._schema.is_mutable == mutates


BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.integration)]
backends = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def model_with_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2), nn.Linear(2, 2))
    model[:3](torch.randn(5, 4)).square().sum().mul(10).backward()
    return model


def clip(params):
    return gradkern.clip_grad_norm_(params, 0.5)


@backends
def test_clip_grad_norm(backend):
    eager, compiled = model_with_gradients(), model_with_gradients()
    want = clip(list(eager.parameters()))
    got = torch.compile(clip, fullgraph=True, backend=backend)(list(compiled.parameters()))
    assert ref.bits(got) == ref.bits(want)
    for a, b in zip(eager.parameters(), compiled.parameters()):
        assert a.grad is None or ref.bits(a.grad) == ref.bits(b.grad)


@pytest.mark.parametrize(
    "function",
    [
        lambda ps: gradkern.clip_grad_value_(ps, 0.1),
        lambda ps: gradkern.clip_grads_with_norm_(ps, 0.5, 3.0),
        lambda ps: gradkern.clip_grads_with_norm_(
            ps, 0.5, gradkern.get_total_norm([p.grad for p in ps if p.grad is not None])
        ),
        lambda ps: gradkern.clip_grad_norm_(ps, 0.5, norm_type=1.0, error_if_nonfinite=True),
        lambda ps: gradkern.get_total_norm([p.grad for p in ps if p.grad is not None], math.inf, True),
        lambda ps: gradkern.clip_grad_norm_(ps[-2:], 0.5),
    ],
    ids=["value", "with a number", "split", "error_if_nonfinite", "get_total_norm", "no gradients"],
)
def test_the_other_functions(function):
    eager, compiled = model_with_gradients(), model_with_gradients()
    want = function(list(eager.parameters()))
    got = torch.compile(function, fullgraph=True, backend="aot_eager")(list(compiled.parameters()))
    assert (got is None) == (want is None)
    assert got is None or ref.bits(got) == ref.bits(want)
    for a, b in zip(eager.parameters(), compiled.parameters()):
        assert a.grad is None or ref.bits(a.grad) == ref.bits(b.grad)


def step(weight, bias, x):
    """autograd.grad and the clip in one graph."""
    loss = torch.tanh(x @ weight + bias).square().sum() * 10
    found = torch.autograd.grad(loss, (weight, bias))
    total = gradkern.get_total_norm(found)
    factor = torch.clamp(0.5 / (total.double() + 1e-6), max=1.0)
    torch.ops.gradkern.scale_(list(found), factor)
    return total, found


@pytest.fixture
def autograd_in_graphs():
    """torch's switch for torch.autograd.grad in a graph."""
    config = torch._dynamo.config
    if not hasattr(config, "trace_autograd_ops"):
        pytest.skip("torch 2.10 has no switch")
    with config.patch(trace_autograd_ops=True):
        yield


@backends
def test_autograd_grad_and_clip(autograd_in_graphs, backend):
    weight, bias = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3))
    x = torch.randn(6, 4)
    want_total, want = step(weight, bias, x)
    total, got = torch.compile(step, fullgraph=True, backend=backend)(weight, bias, x)
    torch.testing.assert_close(total, want_total)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b)
    assert gradkern.get_total_norm(got).item() == pytest.approx(0.5, rel=1e-5)


def test_no_recompilation_on_later_calls():
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(clip, fullgraph=True, backend=counter)
    params = list(model_with_gradients().parameters())
    for _ in range(3):
        for p in params:
            if p.grad is not None:
                p.grad = torch.randn_like(p)
        compiled(params)
    assert counter.frame_count == 1


CHANGING = {
    "max_norm": lambda ps, x: gradkern.clip_grad_norm_(ps, x),
    "max_norm of a split clip": lambda ps, x: gradkern.clip_grads_with_norm_(ps, x, torch.tensor(3.0)),
}


@pytest.mark.parametrize("function", CHANGING.values(), ids=CHANGING.keys())
@pytest.mark.parametrize(
    "make",
    [
        float,
        torch.tensor,
        pytest.param(lambda x: torch.tensor(x, dtype=torch.float64), marks=pytest.mark.integration),
    ],
)
def test_a_limit_that_changes_is_no_reason_to_compile_again(function, make):
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for step in range(12):
        params, expected = (list(model_with_gradients().parameters()) for _ in range(2))
        limit = 0.5 + step / 8
        got, want = compiled(params, make(limit)), function(expected, limit)
        assert (got is None) == (want is None) and (got is None or ref.bits(got) == ref.bits(want))
        for a, b in zip(params, expected):
            assert a.grad is None or ref.bits(a.grad) == ref.bits(b.grad)
    assert counter.frame_count <= 2  # torch's own: a constant first, then a variable


def test_an_infinite_limit_never_writes_in_a_graph_either():
    params = parameters([torch.tensor([1.0, math.nan])])
    total = torch.compile(lambda ps: gradkern.clip_grad_norm_(ps, math.inf), fullgraph=True, backend="eager")(
        params
    )
    assert math.isnan(total) and params[0].grad[0].item() == 1.0


def test_devices_without_kernels_are_left_to_torch_in_a_graph(monkeypatch):
    asked = []
    monkeypatch.setattr(
        gradkern.kernels.torch_ops, "clip_in_graph", lambda *a: asked.append(len(a)) or torch.ones(())
    )
    param = nn.Parameter(torch.ones(3, device="meta"))
    param.grad = torch.ones(3, device="meta")
    assert gradkern.clipping.compiled.clip_grad_norm_([param], 1.0, 2.0, False) == 1 and asked == [4]


def test_error_if_nonfinite_raises_from_compiled_code():
    params = parameters([torch.tensor([1.0, math.nan])])

    def function(ps):
        return gradkern.clip_grad_norm_(ps, 1.0, error_if_nonfinite=True)

    with pytest.raises(RuntimeError, match="is non-finite, so it cannot be clipped"):
        torch.compile(function, fullgraph=True, backend="aot_eager")(params)
    assert params[0].grad[0].item() == 1.0


def test_operators_give_the_bits_of_the_functions():
    g = grads()
    assert ref.bits(ops.total_norm(g, 2.0)) == ref.bits(gradkern.get_total_norm(g))
