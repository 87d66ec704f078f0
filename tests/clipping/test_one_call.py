"""Policies and groups in one call of the extension give the same decisions as in separate steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import gradkern
from gradkern.kernels.backend import C, NullBackend
from gradkern.policies import (
    AGC,
    AdaGC,
    AutoClip,
    GlobalNorm,
    PerLayerNorm,
    Schedule,
    SkipOutliers,
    Value,
    ZClip,
    custom,
)

pytestmark = pytest.mark.skipif(not C.build_info(), reason="needs the extension")
POLICIES = {
    "global": lambda: GlobalNorm(0.5),
    "layers": lambda: PerLayerNorm(0.2),
    "value": lambda: Value(0.3),
    "agc": lambda: AGC(0.02),
    "autoclip": lambda: AutoClip(50.0),
    "zclip": lambda: ZClip(warmup_steps=2, max_norm=1.0),
    "adagc": lambda: AdaGC(warmup_steps=2),
    "skip": lambda: SkipOutliers(1.0, 8, 3),
    "schedule": lambda: Schedule.warmup(0.1, 1.0, 4),
}


def build(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 7), nn.LayerNorm(7), nn.Linear(7, 3)).to(dtype)
    model[1].bias = model[0].bias  # a shared parameter: two rows
    return model


def fill(model, step, bad=False):
    generator = torch.Generator().manual_seed(step)
    for i, p in enumerate(model.parameters()):
        p.grad = (
            torch.randn(p.shape, generator=generator, dtype=torch.float64)
            .mul((1 + i) * (1 + step % 3))
            .to(p.dtype)
        )
    if bad:
        model[3].weight.grad[0, 0] = math.nan
    model[2].bias.grad = None


class OneCallOnly:
    """The extension, of which a clip may only use the single call."""

    def __getattr__(self, name):
        assert name not in ("measure", "partials", "policy_step_", "scale_"), name
        return getattr(C, name)


def run(make, monkeypatch, in_one_call, steps=6, bad_at=(), **options):
    if not in_one_call:
        # The steps still measure and scale with the extension.
        class Declining(NullBackend):
            clip = clip_by_groups = staticmethod(lambda *_: None)
            dicts_unchanged = staticmethod(C.dicts_unchanged)

        monkeypatch.setattr("gradkern.clipping.one_call.C", Declining())
    model = build(options.pop("dtype", torch.float32))
    clipper = gradkern.GradClipper(model, **make(), **options)
    told, grads = [], []
    for step in range(steps):
        fill(model, step, step in bad_at)
        told.append(clipper.clip_())
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    monkeypatch.undo()
    return told, grads


def close(a, b, **tolerance):
    if a is None or b is None:
        assert a is b
    elif isinstance(a, float):  # a limit, which the other route may return as a tensor
        assert a == pytest.approx(float(b), rel=1e-6)
    else:
        torch.testing.assert_close(a, b, equal_nan=True, **tolerance)


def compare(one, other):
    for (a, b), grads, wanted in zip(zip(one[0], other[0]), one[1], other[1]):
        close(a.total_norm, b.total_norm)
        close(a.factor, b.factor, rtol=1e-6, atol=0, check_dtype=False)
        close(a.clip_coef, b.clip_coef)
        close(a.skip_step, b.skip_step)
        close(a.threshold, b.threshold, rtol=1e-6, atol=0)
        assert a.policy == b.policy and list(a.groups) == list(b.groups)
        for name, group in a.groups.items():
            close(group.total_norm, b.groups[name].total_norm)
            close(group.threshold, b.groups[name].threshold, rtol=1e-6, atol=0)
        for g, w in zip(grads, wanted):
            close(g, w, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf])
@pytest.mark.parametrize("name", POLICIES)
def test_one_policy(name, norm_type, monkeypatch):
    def make():
        return {"policy": POLICIES[name]()}

    one, other = (run(make, monkeypatch, way, norm_type=norm_type) for way in (True, False))
    compare(one, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", POLICIES)
def test_groups(name, dtype, monkeypatch):
    def make():
        groups = {
            "first": ("0.*", POLICIES[name]()),
            "norms": ("2.*", None),
            "rest": ("*", POLICIES["zclip"]()),
        }
        return {"groups": groups}

    one, other = (run(make, monkeypatch, way, dtype=dtype) for way in (True, False))
    compare(one, other)


@pytest.mark.parametrize("norm_type", [0.0, -math.inf, -1.0, 3.0])
def test_group_norms_of_rarer_orders(norm_type, monkeypatch):
    def make():
        return {"groups": {"first": ("0.*", 0.5), "rest": ("*", None)}}

    one, other = (run(make, monkeypatch, way, norm_type=norm_type) for way in (True, False))
    compare(one, other)


@pytest.mark.parametrize("on_nonfinite", ["propagate", "zero", "skip"])
@pytest.mark.parametrize("name", POLICIES)
def test_a_nan_among_the_steps(name, on_nonfinite, monkeypatch):
    def make():
        return {"groups": {"first": ("0.*", POLICIES[name]()), "rest": ("*", POLICIES["autoclip"]())}}

    one, other = (run(make, monkeypatch, way, bad_at={2}, on_nonfinite=on_nonfinite) for way in (True, False))
    compare(one, other)


def test_everything_is_one_call(monkeypatch):
    for where in ("one_call", "route", "policies.agc", "policies.value"):
        monkeypatch.setattr(f"gradkern.clipping.{where}.C", OneCallOnly())
    for module in ("policy_steps", "scale"):
        monkeypatch.setattr(f"gradkern.kernels.{module}.C", OneCallOnly())
    model = build()
    for name in POLICIES:
        if name == "value":  # measures after it has changed elements
            continue
        fill(model, 0)
        gradkern.GradClipper(model, groups={"a": ("0.*", POLICIES[name]()), "b": ("*", 1.0)}).clip_()


def test_a_function_takes_the_steps():
    model = build()
    fill(model, 0)
    stats = gradkern.GradClipper(
        model, groups={"a": ("0.*", custom(lambda s: 0.5)), "b": ("*", None)}
    ).clip_()
    assert stats.groups["a"].factor == 0.5 and stats.groups["b"].factor == 1.0


def test_an_error_leaves_state_and_gradients():
    model = build()
    policy = AutoClip()
    clipper = gradkern.GradClipper(
        model, groups={"a": ("0.*", policy), "b": ("*", 0.1)}, on_nonfinite="raise"
    )
    fill(model, 0, bad=True)
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    with pytest.raises(RuntimeError, match=r"\[GradClipper.clip_\].*'3.weight'\) \(1 of 21 elements\)"):
        clipper.clip_()
    for a, b in zip(before, (p.grad for p in model.parameters() if p.grad is not None)):
        assert torch.equal(a, b) or a.isnan().any()
    assert policy._state is None or not policy._state.any()


def test_facts_are_the_same_object_until_a_setting_changes():
    model = build()
    clipper = gradkern.GradClipper(model, groups={"a": ("0.*", ZClip()), "b": ("*", 0.1)})
    facts = []
    for step in range(3):
        fill(model, step)
        facts.append(clipper.clip_().policy)
    clipper.policies["b"].max_norm = 0.2
    facts.append(clipper.clip_().policy)
    assert facts[0] is facts[1] is facts[2] and facts[3]["groups"]["b"]["max_norm"] == 0.2


WRONG = {
    "constants": (("zclip", (1.0,), None, None, None), None, "constants: expected 8"),
    "state": (
        ("autoclip", (10.0, 5.0), torch.zeros(3), None, None),
        None,
        "state: expected float64 of length 11",
    ),
    "rows": (("nothing", (), None, None, None), torch.tensor([7]), "rows: expected positions up to 2, got 7"),
    "layers": (("global_norm", (1.0,), None, torch.tensor([0]), None), None, "layers: expected one a row"),
    "limit": (
        ("global_norm", (-1.0,), None, None, None),
        None,
        "max_norm: expected a number that is not negative",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_change_nothing(name):
    native, rows, message = WRONG[name]
    params = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    for p in params:
        p.grad = torch.full((2,), 5.0)
    with pytest.raises(ValueError, match=message):
        C.clip_by_groups(params, C.GroupPlan([native], [rows]), 2.0, "propagate", False, ("a", "b"))
    assert all(p.grad.tolist() == [5.0, 5.0] for p in params)
