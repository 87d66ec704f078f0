"""Fallback to torch's own operations, GRADKERN_DISABLE and GRADKERN_VERIFY."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import gradkern
from gradkern.kernels import torch_ops
from tests.support import reference as ref
from tests.support.strategies import parameters


class Wrapped(torch.Tensor):
    """A tensor subclass whose operations run on another tensor, behind it."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        def unwrap(t):
            return t.inner if isinstance(t, Wrapped) else t

        args, kwargs = torch.utils._pytree.tree_map(unwrap, (args, kwargs or {}))
        out = function(*args, **kwargs)
        return Wrapped(out) if function is torch.ops.aten.detach.default else out


def wrapped_parameter():
    inner = torch.tensor([3.0, 4.0])
    param = nn.Parameter(Wrapped(torch.zeros(2)))
    param.grad = Wrapped(inner)
    return param, inner


class TestSubclass:
    def test_clip(self):
        param, inner = wrapped_parameter()
        assert gradkern.clip_grad_norm_([param], 1.0).item() == 5.0
        torch.testing.assert_close(inner, torch.tensor([0.6, 0.8]))

    def test_clip_value(self):
        param, inner = wrapped_parameter()
        gradkern.clip_grad_value_([param], 3.5)
        assert inner.tolist() == [3.0, 3.5]

    def test_split(self):
        param, inner = wrapped_parameter()
        norm = gradkern.get_total_norm([param.grad])
        assert float(norm) == 5.0
        gradkern.clip_grads_with_norm_([param], 1.0, norm)
        torch.testing.assert_close(inner, torch.tensor([0.6, 0.8]))

    def test_clipper_and_measure_beside_a_plain_tensor(self):
        param, inner = wrapped_parameter()
        plain = parameters([torch.tensor([12.0])])[0]
        assert gradkern.measure([param, plain]).norm.tolist() == [5.0, 12.0]
        stats = gradkern.GradClipper([param, plain], 1.0).clip_()
        assert stats.total_norm.item() == 13.0
        torch.testing.assert_close(inner, torch.tensor([3.0, 4.0]) / 13)
        torch.testing.assert_close(plain.grad, torch.tensor([12.0 / 13]))

    @pytest.mark.parametrize("policy", ["raise", "zero", "skip"])
    def test_policies(self, policy):
        param, inner = wrapped_parameter()
        inner[0] = float("nan")
        clipper = gradkern.GradClipper([("w", param)], 1.0, on_nonfinite=policy)
        if policy == "raise":
            with pytest.raises(
                RuntimeError, match=r"expected finite gradients, got inf or NaN in: 'w' \(1 elements\)"
            ):
                clipper.clip_()
            assert inner[1].item() == 4.0
        else:
            stats = clipper.clip_()
            assert inner[1].item() == (0.0 if policy == "zero" else 4.0)
            assert policy != "zero" or inner[0].item() == 0.0
            assert policy != "skip" or stats.skip_step.item() is True


class TestMissingKernels:
    """Gradients on a GPU with an extension built without CUDA, simulated with other gradients."""

    @pytest.mark.parametrize(
        "call",
        [
            lambda p: gradkern.clip_grad_norm_(p, 1.0),
            lambda p: gradkern.clip_grad_value_(p, 1.0),
            lambda p: gradkern.clip_grads_with_norm_(p, 1.0, torch.tensor(2.0)),
            lambda p: gradkern.get_total_norm([q.grad for q in p]),
            gradkern.measure,
            lambda p: gradkern.GradClipper(p, 1.0).clip_(),
        ],
    )
    def test_one_warning_says_what_to_do(self, monkeypatch, recwarn, call):
        monkeypatch.setattr(torch_ops, "_lacks_kernels", lambda tensor: True)
        monkeypatch.setattr(torch_ops, "_warned", False)
        param, _ = wrapped_parameter()
        call([param])
        call([param])
        texts = [str(w.message) for w in recwarn if "gradkern" in str(w.message)]
        assert len(texts) == 1
        assert texts[0].startswith("gradkern was built without CUDA kernels: gradients on a GPU use torch's")
        assert "GRADKERN_CUDA=1 pip install --force-reinstall" in texts[0]

    def test_silent_where_kernels_are_not_what_is_missing(self, recwarn):
        gradkern.clip_grad_norm_([wrapped_parameter()[0]], 1.0)
        assert not [w for w in recwarn if "CUDA kernels" in str(w.message)]


class TestFakeTensors:
    def test_shapes_and_types_without_data(self):
        with FakeTensorMode():
            model = nn.Linear(3, 2)
            for p in model.parameters():
                p.grad = torch.empty_like(p)
            total = gradkern.clip_grad_norm_(model.parameters(), 1.0)
            assert total.shape == ()
            assert total.dtype == torch.float32
            assert gradkern.get_total_norm([p.grad for p in model.parameters()]).shape == ()
            gradkern.clip_grad_value_(model.parameters(), 1.0)
            assert gradkern.measure(model).norm.shape == (2,)

    def test_fake_gradients_outside_their_mode(self):
        mode = FakeTensorMode()
        with mode:
            fake = torch.ones(3)
        assert gradkern.get_total_norm([fake]).shape == ()


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_the_operations():
    params = parameters([torch.tensor([3.0, 4.0])])
    with Recorder() as recorder:
        total = gradkern.clip_grad_norm_(params, 1.0)
    assert total.item() == 5.0
    assert any("norm" in name for name in recorder.seen)
    assert any("mul" in name for name in recorder.seen)
    torch.testing.assert_close(params[0].grad, torch.tensor([0.6, 0.8]))


def test_what_merely_has_a_gradient():
    holders = [SimpleNamespace(grad=torch.tensor([3.0, 4.0])), SimpleNamespace(grad=None)]
    with Recorder():
        assert gradkern.clip_grad_norm_(holders, 100.0).item() == 5.0
        gradkern.clip_grads_with_norm_(holders, 100.0, torch.tensor(5.0))
        gradkern.clip_grad_value_(holders, 3.5)
    assert holders[0].grad.tolist() == [3.0, 3.5]


def test_vmap():
    x = torch.randn(5, 7)
    torch.testing.assert_close(
        torch.vmap(lambda row: gradkern.get_total_norm([row], foreach=False))(x), x.norm(dim=1)
    )


def test_func_grad_over_a_clip():
    def f(x):
        return x.square().sum() / gradkern.get_total_norm([x.detach()])

    x = torch.tensor([3.0, 4.0])
    torch.testing.assert_close(torch.func.grad(f)(x), 2 * x / 5)


def test_disable_goes_to_torch(run_with_torch):
    code = """
import math, torch, gradkern
from tests.support.strategies import parameters
tiny = torch.full((100,), 1e-25)
assert gradkern.get_total_norm([tiny]).item() == 0.0  # torch's own underflow
p = parameters([torch.tensor([3.0, 4.0])])
assert gradkern.clip_grad_norm_(p, 1.0).item() == 5.0
gradkern.clip_grad_value_(p, 0.7)
gradkern.clip_grads_with_norm_(p, 1.0, torch.tensor(1.0))
stats = gradkern.measure(p, count_zeros=True)
assert abs(stats.norm.item() - math.hypot(0.6, 0.7)) < 1e-5
p[0].grad = torch.tensor([3.0, 4.0])
assert gradkern.GradClipper(p, 1.0, on_nonfinite="skip").clip_().skip_step.item() is False
version = p[0].grad._version
gradkern.clip_grad_norm_(p, 100.0)
assert p[0].grad._version > version  # torch multiplies always
print("done")
"""
    done = run_with_torch(code, GRADKERN_DISABLE="1")
    assert done.stdout.strip() == "done", done.stderr


VERIFY = """
import math, torch, gradkern
from tests.support.strategies import FINITE, LAYOUTS, NORM_TYPES, values, parameters, DTYPES
for seed, dtype in enumerate(DTYPES):
    for p in (2.0, 1.0, math.inf, 3.0, 0.0, -1.0):
        for kind in ("normal", "zeros", "1e-30", "1e30", "a NaN", "an inf"):
            grads = [LAYOUTS[name](values(kind, 252, dtype, seed)) for name in LAYOUTS]
            gradkern.get_total_norm(grads, p)
            gradkern.clip_grad_norm_(parameters(grads + grads[:2] + [None]), 0.5, p)
            gradkern.clip_grads_with_norm_(parameters(grads), 0.5, torch.tensor(2.0))
            gradkern.measure(parameters(grads + [None]), norm_type=p, count_zeros=True, inv_scale=0.25)
            policy = ("propagate", "zero", "skip")[seed % 3]
            gradkern.GradClipper(parameters(grads), 0.5, norm_type=p, on_nonfinite=policy).clip_()
            if not dtype.is_complex:
                gradkern.clip_grad_value_(parameters([g for g in grads if not g.is_sparse]), 0.5)
for p in (1.0, 2.0, 3.0):  # a sum of many equal numbers, added one by one, would be off
    gradkern.clip_grad_norm_(parameters([torch.full((1_000_000,), 0.1, dtype=torch.float64)]), 1e9, p)
large = lambda: parameters([torch.full((3,), 3.3e38), torch.full((2, 5), -2.9e38)])  # a norm beyond float32
gradkern.clip_grad_norm_(large(), 1.0)
gradkern.GradClipper(large(), 1.0).clip_()
gradkern.GradClipper(large(), groups={"all": ("*", 1.0)}).clip_()
gradkern.GradClipper(large(), policy=gradkern.policies.PerLayerNorm(1.0)).clip_()
for poison in (1.0, math.inf):
    params = parameters([torch.randn(9), torch.randn(5) * poison])
    optimizer = torch.optim.SGD(params, lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    gradkern.GradClipper(params, 0.5).clip_(scaler=scaler, optimizer=optimizer)
    gradkern.GradClipper(params, 0.5, optimizer=optimizer, fold=True).clip_()
print("done")
"""


@pytest.mark.integration
def test_verify_agrees_with_what_is_right(run_with_torch):
    done = run_with_torch(VERIFY, GRADKERN_VERIFY="1")
    assert done.stdout.strip() == "done", done.stderr


PLANTED = """
import sys, torch, gradkern
from gradkern.clipping import clipper, route
from gradkern.kernels import backend, scale
from gradkern.kernels.extension import EXTENSION, VERIFY
from tests.support.strategies import parameters
class Wrong:
    def __init__(self, operation, damage):
        self.operation, self.damage = operation, damage
    def __getattr__(self, operation):
        def call(params, *args):
            result = getattr(EXTENSION, operation)(params, *args)
            return self.damage(params, result) if operation == self.operation else result
        return call
def grad(index, element, value):
    def damage(params, result):
        grads = [getattr(p, "grad", p) if getattr(p, "grad", None) is not None else p for p in params]
        grads[index][element] = value
        return result
    return damage
def column(name):
    def damage(params, columns):
        columns[name][0] += 1
        return columns
    return damage
def larger(params, total):
    return total * (1 + 1e-6)
grads = lambda: parameters([torch.ones(9), torch.ones(2)])
def scaled():
    params = grads()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    gradkern.GradClipper(params, 1.0).clip_(scaler=scaler, optimizer=torch.optim.SGD(params, lr=0.1))
CASES = [
    ("clip_grad_norm_", larger, lambda: gradkern.clip_grad_norm_(grads(), 1.0)),
    ("clip_grad_norm_", grad(0, 4, 0.4), lambda: gradkern.clip_grad_norm_(grads(), 1.0)),
    ("clip_grad_norm_", grad(1, 0, 2.0), lambda: gradkern.clip_grad_norm_(grads(), 100.0)),
    ("get_total_norm", larger, lambda: gradkern.get_total_norm([torch.ones(9)])),
    (
        "clip_grads_with_norm_",
        grad(1, 1, 0.1),
        lambda: gradkern.clip_grads_with_norm_(grads(), 1.0, torch.tensor(4.0)),
    ),
    ("clip_grad_value_", grad(0, 8, 0.7), lambda: gradkern.clip_grad_value_(grads(), 0.5)),
    ("measure", column("norm"), lambda: gradkern.measure(grads())),
    ("measure", column("max_abs"), lambda: gradkern.measure(grads())),
    ("measure", column("nonfinite"), lambda: gradkern.measure(grads())),
    ("measure", column("zeros"), lambda: gradkern.measure(grads(), count_zeros=True)),
    ("clip", column("l2_norm"), lambda: gradkern.GradClipper(grads(), 1.0, norm_type=1.0).clip_()),
    ("clip", grad(0, 0, 1.0), lambda: gradkern.GradClipper(grads(), 1.0).clip_()),
    ("measure", column("norm"), scaled),
    ("scale_", grad(1, 1, 3.0), scaled),
]
for operation, damage, call in CASES:
    wrong = Wrong(operation, damage)
    clipper.C = route.C = scale.C = backend.Verified(wrong) if VERIFY else wrong
    try:
        call()
        print("not noticed")
    except RuntimeError as error:
        print(error)
"""

NOTICED = [
    "[clip_grad_norm_] GRADKERN_VERIFY: total_norm is 3.3166",
    "[clip_grad_norm_] GRADKERN_VERIFY: gradient 0 is not 0.3015",
    "[clip_grad_norm_] GRADKERN_VERIFY: gradient 1 is not 1.0 times what it was",
    "[get_total_norm] GRADKERN_VERIFY: total_norm is 3.00000",
    "[clip_grads_with_norm_] GRADKERN_VERIFY: gradient 1 is not 0.2499",
    "[clip_grad_value_] GRADKERN_VERIFY: gradient 0 is not what it was within ±0.5",
    "[measure] GRADKERN_VERIFY: norm[0] is 4.0, float64 says 3.0",
    "[measure] GRADKERN_VERIFY: max_abs[0] is 2.0, float64 says 1.0",
    "[measure] GRADKERN_VERIFY: nonfinite[0] is 1, counted 0",
    "[measure] GRADKERN_VERIFY: zeros[0] is 1, counted 0",
    "[GradClipper.clip_] GRADKERN_VERIFY: l2_norm[0] is 4.0, float64 says 3.0",
    "[GradClipper.clip_] GRADKERN_VERIFY: gradient 0 is not 0.3015",
    "[measure] GRADKERN_VERIFY: norm[0] is 1.375, float64 says 0.375",
    "[scale_] GRADKERN_VERIFY: gradient 1 is not 0.125 times what it was",
]


@pytest.mark.integration
def test_verify_notices_planted_errors(run_with_torch):
    done = run_with_torch(PLANTED, GRADKERN_VERIFY="1")
    lines = done.stdout.splitlines()
    assert len(lines) == len(NOTICED), done.stdout + done.stderr
    for line, expected in zip(lines, NOTICED):
        assert line.startswith(expected)


@pytest.mark.integration
def test_without_the_switch_nothing_is_verified(run_with_torch):
    done = run_with_torch(PLANTED)
    assert done.stdout.splitlines() == ["not noticed"] * len(NOTICED), done.stderr


def test_sparse_of_half_precision_matches_torch_s_own_sum():
    grad = torch.sparse_coo_tensor(
        torch.tensor([[0, 0, 1]]), torch.tensor([1.0, 2.0, 4.0], dtype=torch.bfloat16), (3,)
    )
    assert gradkern.get_total_norm([grad]).item() == 5.0
    param = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    param.grad = grad
    gradkern.clip_grad_norm_([param], 1.0)
    ref.assert_norm(
        gradkern.get_total_norm([param.grad]).item(),
        ref.total_norm([param.grad]),
        wide=False,
        ulp=ref.NORM_ULP,
    )
