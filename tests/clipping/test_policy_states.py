"""States and decisions of policies are checked before anything changes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import gradkern
from gradkern import policies
from gradkern.kernels.backend import NullBackend
from gradkern.policies import (
    AGC,
    AdaGC,
    AutoClip,
    Decision,
    PerLayerNorm,
    Schedule,
    SkipOutliers,
    Value,
    ZClip,
)


def parameters(count=3):
    torch.manual_seed(count)
    return [nn.Parameter(torch.randn(4, 3)) for _ in range(count)]


def fill(params, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator) * scale


def steps(clipper, params, seeds):
    found = []
    for seed in seeds:
        fill(params, seed, scale=1 + 9 * (seed % 5 == 4))
        stats = clipper.clip_()
        found.append((stats.factor.tolist(), [p.grad.tolist() for p in params]))
    return found


STATEFUL = {
    "AutoClip": lambda: AutoClip(50.0, 8),
    "ZClip": lambda: ZClip(warmup_steps=3),
    "AdaGC": lambda: AdaGC(warmup_steps=3),
    "SkipOutliers": lambda: SkipOutliers(2.0, 8, min_steps=4),
    "Schedule": lambda: Schedule.warmup(0.1, 5.0, 10),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_a_state_that_is_loaded_in_the_middle_goes_on_bit_by_bit(name):
    params = parameters()
    first = gradkern.GradClipper(params, policy=STATEFUL[name]())
    steps(first, params, range(9))
    second = gradkern.GradClipper(params, policy=STATEFUL[name]())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert steps(second, params, range(9, 20)) == steps(first, params, range(9, 20))


def test_a_state_of_other_parameters_is_an_error_that_says_so():
    params = parameters()
    clipper = gradkern.GradClipper(params, policy=AdaGC())
    steps(clipper, params, range(3))
    fewer = gradkern.GradClipper(params[:2], policy=AdaGC())
    with pytest.raises(
        ValueError, match=r"\[AdaGC.load_state_dict\] state: expected 3 numbers for 2 gradients"
    ):
        fewer.load_state_dict(clipper.state_dict())
    assert fewer.state_dict() == {"": {}}
    # A policy that was loaded before it was given to a clipper learns it in the first step.
    policy = AdaGC()
    policy.load_state_dict(clipper.state_dict()[""])
    before = params[0].grad.clone()
    with pytest.raises(ValueError, match="expected 3 numbers for 2 gradients"):
        gradkern.GradClipper(params[:2], policy=policy).clip_()
    assert torch.equal(params[0].grad, before)


def test_parameters_that_change_begin_a_new_state_with_a_warning():
    model = nn.ModuleList([nn.Linear(2, 2)])
    clipper = gradkern.GradClipper(model, policy=AdaGC())
    fill(model.parameters(), 0)
    clipper.clip_()
    model.append(nn.Linear(2, 2))
    fill(model.parameters(), 1)
    with pytest.warns(gradkern.GradkernWarning, match="the state of the policy no longer fits"):
        clipper.clip_()
    clipper.clip_()


def test_the_states_of_a_clipper_are_loaded_together_or_not_at_all():
    params = parameters()

    def build(second):
        return gradkern.GradClipper(
            params, groups={"a": (params[:1], ZClip(warmup_steps=2)), "b": (params[1:], second)}
        )

    clipper, other = build(AutoClip(50.0, 8)), build(AutoClip(50.0, 8))
    steps(clipper, params, range(4))
    before = copy.deepcopy(clipper.state_dict())
    steps(other, params, range(4, 9))
    for broken in ({"kind": "zclip", "state": torch.zeros(3)}, {"kind": "autoclip", "state": torch.zeros(3)}):
        with pytest.raises(ValueError, match=r"\[AutoClip.load_state_dict\]"):
            clipper.load_state_dict({**other.state_dict(), "b": broken})
        assert torch.equal(clipper.state_dict()["a"]["state"], before["a"]["state"])
        assert torch.equal(clipper.state_dict()["b"]["state"], before["b"]["state"])
    for state, kind, message in (
        (3, TypeError, "a dict of dicts by group name, got int"),
        ({"a": 3, "b": {}}, TypeError, "a dict of dicts by group name"),
        ({"a": {}}, ValueError, r"expected groups \['a', 'b'\], got \['a'\]"),
    ):
        with pytest.raises(kind, match=message):
            clipper.load_state_dict(state)
    measured = build(None)
    with pytest.raises(ValueError, match="there is no policy for 'b', but the state has"):
        measured.load_state_dict(other.state_dict())


@pytest.mark.parametrize("native", [True, False])
def test_a_step_that_raises_enters_no_state(native, monkeypatch):
    if not native:
        monkeypatch.setattr("gradkern.clipping.one_call.C", NullBackend())
    params = parameters()
    schedule, adagc = Schedule(lambda step: 1.0 + step), AdaGC()
    clipper = gradkern.GradClipper(
        params, groups={"a": (params[:2], adagc), "b": (params[2:], schedule)}, on_nonfinite="raise"
    )
    steps(clipper, params, range(2))
    before = copy.deepcopy(clipper.state_dict())
    params[2].grad[0, 0] = math.nan
    with pytest.raises(RuntimeError, match="'2'"):
        clipper.clip_()
    assert clipper.state_dict()["b"] == before["b"] == {"step": 2}
    assert torch.equal(clipper.state_dict()["a"]["state"], before["a"]["state"])


@pytest.mark.parametrize(
    ("decided", "factor", "skip"),
    [
        (0.5, 0.5, None),
        (Decision(0.5), 0.5, None),
        (Decision(1, skip=False), 1.0, False),
        (Decision(0.5, skip=True), 1.0, True),
        (Decision(torch.tensor(0.5), skip=torch.tensor([True])), 1.0, True),
        (torch.tensor([0.5, 1.0], dtype=torch.float16), 0.5, None),
    ],
)
def test_a_function_may_decide_in_numbers(decided, factor, skip):
    params = parameters(2)
    fill(params, 0)
    before = params[0].grad.clone()
    stats = gradkern.GradClipper(params, policy=policies.custom(lambda stats: decided)).clip_()
    assert torch.equal(params[0].grad, before * factor)
    assert stats.factor[0].item() == factor
    assert (stats.skip_step is None) if skip is None else stats.skip_step.item() is skip
    groups = {"a": (params[:1], policies.custom(lambda stats: 0.25)), "b": (params[1:], None)}
    assert gradkern.GradClipper(params, groups=groups).clip_().groups["a"].factor.item() == 0.25


@pytest.mark.parametrize(
    ("decided", "kind", "message"),
    [
        (None, TypeError, "expected a Decision, or a factor as a number or a tensor, got NoneType"),
        ("0.5", TypeError, "got str"),
        (torch.ones(2, dtype=torch.complex64), TypeError, "got a tensor of torch.complex64"),
        (torch.ones(5), ValueError, r"factor: expected one number or one for each of 2 rows, got \(5,\)"),
        (Decision(1.0, skip="yes"), TypeError, "expected skip as a number or a tensor, got str"),
        (Decision(1.0, skip=torch.ones(2)), ValueError, r"skip: expected one bool, got shape \(2,\)"),
    ],
)
def test_what_is_no_decision(decided, kind, message):
    params = parameters(2)
    fill(params, 0)
    before = params[0].grad.clone()
    with pytest.raises(kind, match=rf"\[custom.decide\] .*{message}"):
        gradkern.GradClipper(params, policy=policies.custom(lambda stats: decided)).clip_()
    assert torch.equal(params[0].grad, before)


def test_a_function_with_one_factor_folds_and_one_with_several_says_why_not():
    params = parameters(2)
    optimizer = torch.optim.AdamW(params, lr=0.1, fused=True)
    fill(params, 0)
    half = policies.custom(lambda stats: 0.5)
    stats = gradkern.GradClipper(params, policy=half, optimizer=optimizer, fold=True).clip_()
    assert stats.clip_coef.item() == 0.5
    assert optimizer.grad_scale.item() == 2.0
    several = policies.custom(lambda stats: torch.full((2,), 0.5))
    before = params[0].grad.clone()
    with pytest.raises(
        ValueError, match="fold: expected a policy with one factor for all gradients, got one for each"
    ):
        gradkern.GradClipper(params, policy=several, optimizer=optimizer, fold=True).clip_()
    assert torch.equal(params[0].grad, before)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    optimizer = torch.optim.AdamW(params, lr=0.1, fused=True)
    clipper = gradkern.GradClipper(params, policy=several, optimizer=optimizer, fold=True)
    with pytest.raises(ValueError, match="fold: expected a policy with one factor for all gradients"):
        clipper.clip_(scaler=scaler)
    assert torch.equal(params[0].grad, before)
    assert not hasattr(optimizer, "grad_scale") and not hasattr(optimizer, "found_inf")
    scaler.unscale_(optimizer)  # nothing was unscaled before
    torch.testing.assert_close(params[0].grad, before / 8)
    with pytest.raises(
        ValueError, match="fold: cannot be combined with groups or with a policy that has several factors"
    ):
        gradkern.GradClipper(params, policy=PerLayerNorm(), optimizer=optimizer, fold=True)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("on_nonfinite", ["propagate", "zero", "skip"])
@pytest.mark.parametrize("policy", [lambda: Value(0.1), lambda: AGC(0.01), lambda: 0.1, lambda: AdaGC()])
@pytest.mark.parametrize("bad", [None, 0, 2])
def test_what_is_said_of_groups_is_the_same_on_every_route(native, on_nonfinite, policy, bad, monkeypatch):
    """Factors are what gradients were multiplied by, or the ratios of their norms."""
    if not native:
        monkeypatch.setattr("gradkern.clipping.one_call.C", NullBackend())
    params = parameters()
    fill(params, 3)
    if bad is not None:
        params[bad].grad[0, 0] = math.nan
    before = [p.grad.double().norm().item() for p in params]
    groups = {"a": (params[:2], policy()), "b": (params[2:], 0.5)}
    stats = gradkern.GradClipper(params, groups=groups, on_nonfinite=on_nonfinite).clip_()
    ratios = [p.grad.double().norm().item() / norm for p, norm in zip(params, before)]
    if bad is not None and on_nonfinite != "propagate":
        ratios = [0.0 if on_nonfinite == "zero" else 1.0] * 3
    if bad is not None and isinstance(policy(), AdaGC) and on_nonfinite == "propagate":
        ratios[bad] = math.nan if bad == 2 else 1.0  # it leaves a gradient alone whose norm is not finite
    assert stats.factor.tolist() == pytest.approx(ratios, rel=1e-5, nan_ok=True)
    least = math.nan if math.isnan(sum(ratios[:2])) else min(ratios[:2])
    assert stats.groups["a"].factor.item() == pytest.approx(least, rel=1e-5, nan_ok=True)
    assert stats.groups["b"].factor.item() == pytest.approx(ratios[2], rel=1e-5, nan_ok=True)
    if on_nonfinite == "skip":
        assert stats.skip_step.item() is (bad is not None)


def test_gradients_that_overlap_later():
    params = [nn.Parameter(torch.zeros(4)) for _ in range(2)]
    clipper = gradkern.GradClipper(params, groups={"a": (params[:1], 1.0), "b": (params[1:], 1.0)})
    fill(params, 0)
    clipper.clip_()
    buffer = torch.full((6,), 5.0)
    params[0].grad, params[1].grad = buffer[:4], buffer[2:]
    with pytest.raises(ValueError, match="the gradients of '0' of 'a' and '1' of 'b' share memory"):
        clipper.clip_()
    assert buffer.tolist() == [5.0] * 6
    columns = torch.full((4, 2), 5.0)  # disjoint, although one lies between the other's elements
    params[0].grad, params[1].grad = columns[:, 0], columns[:, 1]
    clipper.clip_()
    assert columns.square().sum(dim=0).tolist() == pytest.approx([1.0, 1.0], rel=1e-5)
    shared = torch.ones(4)
    params[0].grad = params[1].grad = shared
    with pytest.raises(ValueError, match="share memory, which both groups would scale"):
        clipper.clip_()


def test_statistics_of_groups_survive_a_copy_and_a_roll_up():
    params = parameters()
    fill(params, 0)
    stats = gradkern.GradClipper(params, groups={"a": (params[:2], 0.1), "b": (params[2:], 9.0)}).clip_()
    copied, rolled = copy.deepcopy(stats), stats.by_layer(0)
    for other in (copied, rolled, stats.cpu()):
        assert {n: g.factor.item() for n, g in other.groups.items()} == {
            n: g.factor.item() for n, g in stats.groups.items()
        }
    assert stats.groups["b"].factor.item() == 1.0
