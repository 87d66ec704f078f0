"""Gradients that are not plain floating-point tensors: a result, or an error that names them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

import gradkern
from gradkern.policies import AGC, AdaGC, AutoClip, PerLayerNorm, Schedule, SkipOutliers, Value, ZClip
from tests.params.test_kinds import DTYPES, tensor_of


def jagged():
    return torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged)


KINDS = {
    **{str(d).removeprefix("torch."): (lambda d=d: tensor_of(d)) for d in DTYPES},
    "jagged": jagged,
    "csr": lambda: torch.ones(4, 4).to_sparse_csr(),
    "csc": lambda: torch.ones(4, 4).to_sparse_csc(),
    "bsr": lambda: torch.ones(4, 4).to_sparse_bsr((2, 2)),
    "coo": lambda: torch.ones(4, 4).to_sparse(),
    "mkldnn": lambda: torch.ones(4, 4).to_mkldnn(),
    "meta": lambda: torch.ones(4, 4, device="meta"),
    "masked": lambda: torch.masked.as_masked_tensor(torch.ones(4, 4), torch.eye(4).bool()),
    "wrapper": lambda: TwoTensor(torch.ones(4, 4), torch.ones(4, 4)),
}

CALLS = {
    "clip_grad_norm_": lambda m, ps: gradkern.clip_grad_norm_(ps, 1.0),
    "get_total_norm": lambda m, ps: gradkern.get_total_norm([p.grad for p in ps]),
    "clip_grads_with_norm_": lambda m, ps: gradkern.clip_grads_with_norm_(ps, 1.0, torch.tensor(10.0)),
    "clip_grad_value_": lambda m, ps: gradkern.clip_grad_value_(ps, 1.0),
    "measure": lambda m, ps: gradkern.measure(m),
    "GradClipper": lambda m, ps: gradkern.GradClipper(m, 1.0).clip_(),
    "groups": lambda m, ps: gradkern.GradClipper(m, groups={"a": ("0.*", 1.0), "b": ("*", 1.0)}).clip_(),
    "agc": lambda m, ps: gradkern.GradClipper(m, groups={"a": ("0.*", 1.0), "b": ("*", AGC())}).clip_(),
    "adaptive": lambda m, ps: gradkern.adaptive_clip_grad_(ps),
}


def with_gradient(grad):
    """A parameter with this gradient, or None if torch does not allow it."""
    try:
        trainable = grad.dtype.is_floating_point or grad.dtype.is_complex
        param = nn.Parameter(grad if grad.is_meta else grad.clone(), requires_grad=trainable)
        param.grad = grad
    except (RuntimeError, TypeError):
        return None
    return param


def model_of(odd):
    model = nn.Sequential(nn.Linear(2, 2), nn.Module())
    model[1].odd = odd
    for p in model[0].parameters():
        p.grad = torch.full_like(p, 3.0)
    return model


def try_all(kinds):
    """Descriptions of everything that goes wrong; should be empty."""
    wrong = []
    for kind in kinds:
        for name, call in CALLS.items():
            odd = with_gradient(KINDS[kind]())
            if odd is None or (kind == "masked" and name in ("agc", "adaptive")):
                continue
            model = model_of(odd)
            try:
                call(model, list(model.parameters()))
            except (TypeError, RuntimeError) as error:
                said = str(error)
                wanted = "'1.odd'" if name in ("measure", "GradClipper", "groups", "agc") else "[2]"
                if wanted not in said:
                    wrong.append(f"{kind} {name} does not name the gradient: {said[:200]}")
                if not all((p.grad == 3).all() for p in model[0].parameters()):
                    wrong.append(f"{kind} {name} raised after it had changed a gradient: {said[:200]}")
    return wrong


STATEFUL = [lambda: AdaGC(warmup_steps=0), AutoClip, SkipOutliers, ZClip]
POLICIES = [*STATEFUL, AGC, PerLayerNorm, Value, lambda: Schedule.warmup(1.0, 1.0, 1)]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_takes_a_wrapper_subclass(policy):
    """Neither the gradient nor its norm has memory of its own."""
    for grouped in (False, True):
        plain, wrapped = nn.Parameter(torch.zeros(3)), nn.Parameter(TwoTensor(torch.zeros(3), torch.zeros(3)))
        plain.grad = torch.full((3,), 3.0)
        wrapped.grad = TwoTensor(torch.full((3,), 3.0), torch.full((3,), 3.0))
        same = nn.Parameter(torch.zeros(3))
        same.grad = torch.full((3,), 3.0)
        for odd in (wrapped, same):
            params = [("a.w", plain), ("b.w", odd)]
            plain.grad = torch.full((3,), 3.0)
            groups = {"a": ("a.*", 1.0), "b": ("b.*", policy())} if grouped else None
            clipper = gradkern.GradClipper(params, policy=None if grouped else policy(), groups=groups)
            clipper.clip_()
        assert torch.allclose(wrapped.grad.a, same.grad)
        assert torch.equal(wrapped.grad.a, wrapped.grad.b)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_without_gradients_on_another_device(policy):
    model = nn.Linear(2, 2, device="meta")
    for groups in (None, {"all": ("*", policy())}):
        own = policy() if groups is None else None
        stats = gradkern.GradClipper(model, policy=own, groups=groups).clip_()
        assert stats.total_norm.is_meta and stats.clip_coef.is_meta


def test_fake_gradients():
    with FakeTensorMode():
        param = nn.Parameter(torch.zeros(3))
        param.grad = torch.ones(3)
        for policy in (PerLayerNorm(), Value()):
            assert gradkern.GradClipper([param], policy=policy).clip_().total_norm.shape == ()
        assert gradkern.GradClipper([param], 1.0).clip_().norm.shape == (1,)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_by_kernels(kind):
    assert try_all([kind]) == []


@pytest.mark.integration
@pytest.mark.parametrize("variable", ["GRADKERN_DISABLE", "GRADKERN_VERIFY"])
def test_by_torch_and_verified(run_with_torch, variable):
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "from tests.kernels.test_kinds import KINDS, try_all\n"
        "print(*try_all(KINDS), sep='\\n', end='')"
    )
    done = run_with_torch(code, **{variable: "1"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_float8_gradient_is_clipped_by_torchs_operations(run_with_torch):
    code = (
        "import torch, gradkern\n"
        "p = torch.nn.Parameter(torch.ones(4).to(torch.float8_e4m3fn)); p.grad = p.detach().clone()\n"
        "print(gradkern.GradClipper([p], 1.0).clip_().total_norm.item(), p.grad.float().tolist())"
    )
    done = run_with_torch(code, GRADKERN_DISABLE="1")
    assert done.stdout.split(maxsplit=1)[0] == "2.0" and done.stdout.count("0.5") == 4


OVERLAPS = """
import torch, gradkern
memory = torch.full((8,), 3.0)
params = [torch.nn.Parameter(torch.zeros(6)) for _ in range(2)]
params[0].grad, params[1].grad = memory[:6], memory[2:]
total = gradkern.GradClipper(params, 1.0).clip_().total_norm.item()
print(abs(total - 108**0.5) < 1e-5, (memory * total - 3).abs().max().item() < 1e-5)
memory = torch.full((8,), 3.0)
params[0].grad, params[1].grad = memory[:6], memory[2:]
gradkern.GradClipper([*zip(("a.w", "b.w"), params)], policy=gradkern.policies.PerLayerNorm(1.0)).clip_()
print((memory * 54**0.5 - 3).abs().max().item() < 1e-5)
wide, plain = torch.nn.Parameter(torch.zeros(4, 3)), torch.nn.Parameter(torch.zeros(2))
wide.grad, plain.grad = torch.full((4, 1), 3.0).expand(4, 3), torch.full((2,), 3.0)
for clip in (gradkern.clip_grad_norm_, gradkern.clip_grad_value_):
    try:
        clip([plain, wide], 1.0)
    except RuntimeError as error:
        print("parameters[1]: torch's operations do not write to an expanded" in str(error))
print((plain.grad == 3).all().item())
gradkern.GradClipper([plain, wide], 1.0).clip_()
print((wide.grad * 126**0.5 - 3).abs().max().item() < 1e-5)
meta = torch.nn.Linear(2, 2, device="meta")
print(gradkern.clip_grad_norm_(meta.parameters(), 1.0).device.type)
print(gradkern.clip_grads_with_norm_([plain], 1.0, torch.tensor([5.0])))
"""


def test_memory_that_gradients_share_without_kernels(run_with_torch):
    done = run_with_torch("import warnings; warnings.simplefilter('ignore')" + OVERLAPS, GRADKERN_DISABLE="1")
    assert done.stderr == "" and done.stdout.split() == [*["True"] * 7, "meta", "None"]
