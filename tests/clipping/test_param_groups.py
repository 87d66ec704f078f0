"""`clip_grad_norm_` of an optimizer's param_groups."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import gradkern


def model_and_groups(*limits):
    """One group per layer; a limit of ``...`` leaves a group without one."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in limits))
    for i, p in enumerate(model.parameters()):
        p.grad = torch.randn(p.shape) * (1 + i)
    given = [{} if limit is ... else {"max_norm": limit} for limit in limits]
    groups = [{"params": list(layer.parameters()), **own} for layer, own in zip(model, given)]
    return model, torch.optim.SGD(groups, lr=0.1).param_groups


def norm_of(*modules):
    return torch.cat([p.grad.double().flatten() for m in modules for p in m.parameters()]).norm().item()


def test_without_limits_of_their_own_they_are_one_list():
    (model, groups), (other, _) = model_and_groups(..., ...), model_and_groups(..., ...)
    total = gradkern.clip_grad_norm_(groups, 1.0)
    expected = torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
    torch.testing.assert_close(total, expected)
    for a, b in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf, 3.0])
def test_groups_with_limits_of_their_own(norm_type):
    model, groups = model_and_groups(0.5, ..., 1e6, ...)
    before = [p.grad.double().clone() for p in model.parameters()]

    def norm(grads):
        return torch.cat([g.flatten() for g in grads]).norm(norm_type).item()

    total = gradkern.clip_grad_norm_(groups, 2.0, norm_type)
    assert total.item() == pytest.approx(norm(before), rel=1e-6)
    others = min(1.0, 2.0 / norm(before[2:4] + before[6:]))
    factors = [0.5 / norm(before[:2]), others, 1.0, others]
    for i, (p, old) in enumerate(zip(model.parameters(), before)):
        torch.testing.assert_close(p.grad.double(), old * factors[i // 2], rtol=1e-5, atol=1e-9)


def test_none_is_no_limit_of_its_own_and_infinity_measures():
    model, groups = model_and_groups(None, math.inf)
    before = norm_of(model[1])
    gradkern.clip_grad_norm_(groups, 0.1)
    assert norm_of(model[0]) == pytest.approx(0.1, rel=1e-4) and norm_of(model[1]) == before


def test_a_nan_is_an_error_that_names_its_place():
    model, groups = model_and_groups(1.0, ...)
    model[1].weight.grad[0, 0] = math.nan
    before = model[0].weight.grad.clone()
    message = r"Non-finite: 'parameters\[1\]\['params'\]\[0\]' \(1 elements\). Gradients are unchanged"
    with pytest.raises(RuntimeError, match=message):
        gradkern.clip_grad_norm_(groups, 0.1, error_if_nonfinite=True)
    assert torch.equal(model[0].weight.grad, before)


def test_what_is_no_list_of_groups():
    _, groups = model_and_groups(1.0)
    with pytest.raises(TypeError, match=r"parameters\[1\]: expected a dict with 'params'.*got \['lr'\]"):
        gradkern.clip_grad_norm_([*groups, {"lr": 1.0}], 1.0)
    with pytest.raises(ValueError, match=r"parameters\[0\]\['max_norm'\]: expected a number that is not neg"):
        gradkern.clip_grad_norm_([{"params": groups[0]["params"], "max_norm": -1.0}], 1.0)


def test_gradients_in_two_groups_that_share_memory():
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    memory = torch.ones(5)
    a.grad, b.grad = memory[:3], memory[2:]
    with pytest.raises(ValueError, match=r"\[clip_grad_norm_\] groups: the gradients of .* share memory"):
        gradkern.clip_grad_norm_([{"params": [a], "max_norm": 1.0}, {"params": [b], "max_norm": 2.0}], 1.0)
    assert torch.equal(memory, torch.ones(5))


def test_a_parameter_of_two_groups_is_the_first_ones():
    p, q = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    p.grad, q.grad = torch.tensor([3.0, 4.0]), torch.tensor([6.0, 8.0])
    gradkern.clip_grad_norm_([{"params": [p], "max_norm": 0.5}, {"params": [p, q]}], 1.0)
    assert p.grad.norm().item() == pytest.approx(0.5, rel=1e-5)
    assert q.grad.norm().item() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize(
    "norm_type", [2.0, *(pytest.param(p, marks=pytest.mark.integration) for p in (1.0, math.inf))]
)
def test_groups_in_a_graph_of_the_compiler(norm_type):
    def clip(ps, max_norm):
        groups = [
            {"params": ps[:2], "max_norm": 0.5},
            {"params": ps[2:4]},
            {"params": ps[4:], "max_norm": 1e6},
        ]
        return gradkern.clip_grad_norm_(groups, max_norm, norm_type)

    compiled = torch.compile(clip, fullgraph=True, backend="aot_eager")
    for max_norm in (2.0, 0.25):
        (traced, _), (eager, _) = model_and_groups(..., ..., ...), model_and_groups(..., ..., ...)
        traced[2].bias.grad = eager[2].bias.grad = None
        total = compiled(list(traced.parameters()), max_norm)
        torch.testing.assert_close(total, clip(list(eager.parameters()), max_norm), rtol=2.0**-22, atol=0)
        for a, b in zip(traced.parameters(), eager.parameters()):
            assert (a.grad is None) == (b.grad is None)
            if a.grad is not None:
                torch.testing.assert_close(a.grad, b.grad, rtol=2.0**-22, atol=0)


def test_a_nan_in_a_graph_of_the_compiler_is_an_error_before_any_group_is_scaled():
    def clip(ps):
        groups = [{"params": ps[:2], "max_norm": 0.5}, {"params": ps[2:]}]
        return gradkern.clip_grad_norm_(groups, 1.0, error_if_nonfinite=True)

    model, _ = model_and_groups(..., ...)
    params = list(model.parameters())
    params[3].grad[0] = math.nan
    before = params[0].grad.clone()
    with pytest.raises(RuntimeError, match=r"non-finite.*parameters\[3\]"):
        torch.compile(clip, fullgraph=True, backend="aot_eager")(params)
    assert torch.equal(params[0].grad, before)


def test_an_entry_that_is_no_tensor_in_a_group():
    model = nn.Linear(2, 2)
    for bad in ("weight", 3.0, {}):
        for limit in ({"max_norm": 1.0}, {}):
            groups = [{"params": [model.bias]}, {"params": [model.weight, bad], **limit}]
            with pytest.raises(TypeError, match=r"parameters\[1\]\['params'\]\[1\]: expected a Tensor"):
                gradkern.clip_grad_norm_(groups, 1.0)
