"""Limits, overflowing norms, default devices and lists without gradients: the same on every route."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

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
    """The gradients that the optimizer used: with lr=1, fused SGD subtracts them."""
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
    """A dispatch mode, with which no kernel is used."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def fallback(clip):
    def run(params):
        with Recorder():
            clip(params)

    return run


def wrapped(clip, wrap):
    """Gradients of a tensor subclass, which torch's operations clip."""

    def run(params):
        plain = [p.grad for p in params]
        for p, grad in zip(params, plain):
            p.grad = wrap(grad)
        clip(params)
        for p in params:
            p.grad = p.grad.a if isinstance(p.grad, TwoTensor) else p.grad.as_subclass(torch.Tensor)

    return run


class Subclass(torch.Tensor):
    pass


def twice(grad):
    return TwoTensor(grad, grad.clone())


def batched(params):
    """One sample of `torch.vmap`, under which tensors have no values."""

    def clip(*grads):
        holders = [SimpleNamespace(grad=g * 1.0) for g in grads]
        gradkern.clip_grad_norm_(holders, 1.0)
        return [h.grad for h in holders]

    for p, grad in zip(params, torch.vmap(clip)(*(p.grad[None] for p in params))):
        p.grad = grad[0]


ROUTES = {
    "wrapper": wrapped(lambda ps: gradkern.clip_grad_norm_(ps, 1.0), twice),
    "wrapper and clipper": wrapped(lambda ps: gradkern.GradClipper(ps, 1.0).clip_(), twice),
    "subclass": wrapped(lambda ps: gradkern.clip_grad_norm_(ps, 1.0), lambda g: g.as_subclass(Subclass)),
    "vmap": batched,
    "compiled": lambda ps: torch.compile(gradkern.clip_grad_norm_, backend="aot_eager")(ps, 1.0),
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


OVERFLOWS = """
import itertools, torch, gradkern
from tests.clipping.test_routes import ROUTES, assert_halves, huge
for clip in ROUTES.values():
    params = huge()
    clip(params)
    assert_halves(params)
kinds = {torch.float16: 6e4, torch.bfloat16: 3e38, torch.float32: 3.4e38, torch.float64: 1.7e308}
def compiled(*arguments):
    torch._dynamo.reset()
    torch.compile(gradkern.clip_grad_norm_, backend="eager", fullgraph=True)(*arguments)
eager = itertools.product([gradkern.clip_grad_norm_], kinds, (2.0, 1.0, 3.0, 0.5))
for run, dtype, order in (*eager, *itertools.product([compiled], kinds, [2.0])):
    param = torch.nn.Parameter(torch.zeros(4, dtype=dtype))
    param.grad = torch.full((4,), kinds[dtype], dtype=dtype)
    run([param], 1.0, order)
    wanted = torch.full_like(param, 4 ** (-1 / order))
    torch.testing.assert_close(param.grad, wanted, rtol=32 * torch.finfo(dtype).eps, atol=0)
half = torch.nn.Parameter(torch.zeros(4, dtype=torch.float16))
half.grad = torch.full((4,), 6e4, dtype=torch.float16)
gradkern.clip_grad_norm_([half], 1e6)  # float16's norm is inf, the norm is below the limit
print(half.grad.tolist() == [6e4] * 4)
"""


@pytest.mark.integration
def test_no_route_without_kernels_zeroes_finite_gradients(run_with_torch):
    done = run_with_torch(
        "import warnings; warnings.simplefilter('ignore')" + OVERFLOWS,
        timeout=400,
        GRADKERN_DISABLE="1",
    )
    assert done.stdout == "True\n", done.stderr


def test_float64_gradients_whose_norm_no_float64_holds():
    """torch's operations use the norm divided by the largest magnitude; see docs/numerics.md."""
    param = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    param.grad = torch.full((4,), 1.7e308, dtype=torch.float64)
    fallback(lambda ps: gradkern.clip_grad_norm_(ps, 1.0))([param])
    torch.testing.assert_close(param.grad, torch.full((4,), 0.5, dtype=torch.float64), rtol=1e-14, atol=0)


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


def test_a_limit_of_minus_zero_keeps_signs():
    for clip in (
        gradkern.clip_grad_norm_,
        gradkern.clip_grad_value_,
        lambda p, m: gradkern.GradClipper(p, m).clip_(),
    ):
        params = parameters([torch.tensor([2.0])])
        clip(params, -0.0)
        assert math.copysign(1.0, params[0].grad.item()) == 1.0


def test_a_negative_norm_on_a_device_changes_nothing():
    """Its sign is not known to the host; here it goes through torch's operations."""
    from gradkern.kernels.torch_scale import coefficient

    assert coefficient(torch.tensor([-1.0, 5.0, math.nan, 0.0]), 1.0).tolist()[:2] == [1.0, 1 / (5 + 1e-6)]
    params = parameters([torch.tensor([2.0, -3.0])])
    from gradkern.kernels import torch_ops

    for limit in (1.0, 0.0, 1e-30, 1e30):
        for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.float8_e4m3fn):
            torch_ops.clip_grads_with_norm_(params, limit, torch.tensor(-1.0).to(dtype))
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


@pytest.mark.parametrize("total", [torch.ones(2), torch.ones(0), torch.ones(1, 2)])
@pytest.mark.parametrize("route", [lambda f: f, fallback], ids=["kernels", "torch"])
def test_a_total_norm_is_one_number(route, total):
    params = parameters([torch.tensor([2.0, -3.0])])
    with pytest.raises(ValueError, match="total_norm: expected one number, got a tensor of shape"):
        route(lambda ps: gradkern.clip_grads_with_norm_(ps, 1.0, total))(params)
    assert params[0].grad.tolist() == [2.0, -3.0]


def test_the_split_functions_where_no_value_can_be_looked_at():
    def one(grad, total):
        holder = SimpleNamespace(grad=grad * 1.0)
        gradkern.clip_grads_with_norm_([holder], 1.0, total)
        clamped = SimpleNamespace(grad=grad * 1.0)
        gradkern.clip_grad_value_([clamped], 1.0)
        return holder.grad, clamped.grad

    found = torch.vmap(one)(torch.full((2, 3), 3.0), torch.tensor([6.0, -6.0]))
    torch.testing.assert_close(found[0], torch.tensor([[0.5] * 3, [3.0] * 3]))
    assert found[1].tolist() == [[1.0] * 3] * 2
    with FakeTensorMode():
        (param,) = parameters([torch.ones(3)])
        for total in (torch.ones(()), 2.0, -torch.ones(())):
            gradkern.clip_grads_with_norm_([param], 1.0, total)
        assert param.grad.shape == (3,)


IN_GRAPHS = """
import torch, gradkern
def run(function, value):
    torch._dynamo.reset()
    param = torch.nn.Parameter(torch.zeros(2))
    param.grad = torch.tensor([3.0, 4.0])
    torch.compile(lambda v: function([param], v), backend="eager", fullgraph=True)(torch.tensor(value))
    return [round(x, 4) for x in param.grad.tolist()]
split = gradkern.clip_grads_with_norm_
calls = {
    "max_norm": (gradkern.clip_grad_norm_, [0.6, 0.8]),
    "split max_norm": (lambda ps, v: split(ps, v, torch.tensor(5.0)), [0.6, 0.8]),
    "total_norm": (lambda ps, v: split(ps, 0.2, v), [0.6, 0.8]),
    "clip_value": (gradkern.clip_grad_value_, [1.0, 1.0]),
}
for name, (call, clipped) in calls.items():
    assert run(call, 1.0) == clipped, (name, run(call, 1.0))
    assert run(call, -1.0) == [3.0, 4.0], name
print("done")
"""


@pytest.mark.integration
@pytest.mark.parametrize("disabled", ["", "1"])
def test_numbers_that_are_inputs_of_a_graph(run_with_torch, disabled):
    done = run_with_torch(IN_GRAPHS, GRADKERN_DISABLE=disabled)
    assert done.stdout.strip() == "done", done.stderr


NOTHING = """
import warnings, torch, gradkern
warnings.simplefilter("ignore")
for params in ([], [torch.nn.Parameter(torch.ones(2))]):
    def everything():
        gradkern.clip_grad_value_(params, 1.0)
        gradkern.clip_grads_with_norm_(params, 1.0, torch.tensor(5.0))
        total = gradkern.get_total_norm([torch.ones(0)], torch.inf)
        return total + gradkern.clip_grad_norm_(params, 1.0, torch.inf)
    assert everything().item() == torch.compile(everything, backend="eager")().item() == 0.0
    torch._dynamo.reset()
print("done")
"""


@pytest.mark.parametrize("disabled", ["", "1"])
def test_nothing_is_clipped_where_there_is_nothing(run_with_torch, disabled):
    done = run_with_torch(NOTHING, GRADKERN_DISABLE=disabled)
    assert done.stdout.strip() == "done", done.stderr


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
    grads = [p.grad for p in params]
    clips = {
        "clip_grad_norm_": lambda ps: gradkern.clip_grad_norm_(ps, norm / 2),
        "split": lambda ps: gradkern.clip_grads_with_norm_(ps, norm / 2, gradkern.get_total_norm(grads)),
        "clipper": lambda ps: gradkern.GradClipper(ps, norm / 2).clip_(),
    }
    for clip in clips.values():
        memory.copy_(torch.tensor([3.0, 4.0]))
        route(clip)(params)
        torch.testing.assert_close(memory, torch.tensor([1.5, 2.0]))
