"""Named norm groups: selectors, one read, one factor a group."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

import gradkern
import gradkern.policies
from gradkern.kernels.backend import NullBackend
from gradkern.policies import AGC, AutoClip, GlobalNorm, PerLayerNorm, SkipOutliers, Value, ZClip


def model_with_gradients(outlier=5e7):
    torch.manual_seed(0)
    model = nn.ModuleDict({"in_proj": nn.Linear(8, 8), "rest": nn.Linear(8, 8)})
    for name, p in model.named_parameters():
        p.grad = torch.randn_like(p) * (outlier if name.startswith("in_proj") else 0.05)
    return model


def norm_of(grads):
    return math.sqrt(sum(g.double().square().sum().item() for g in grads))


def test_an_outlier_leaves_the_other_group_as_it_is():
    model = model_with_gradients()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    clipper = gradkern.GradClipper(model, groups={"hot": ("in_proj.*", 1.0), "cold": ("*", 1.0)})
    stats = clipper.clip_()
    hot = norm_of([before["in_proj.weight"], before["in_proj.bias"]])
    assert stats.groups["hot"].total_norm.item() == pytest.approx(hot, rel=1e-6)
    assert stats.groups["hot"].factor.item() == pytest.approx(1 / hot, rel=1e-6)
    assert stats.groups["hot"].names == ("in_proj.weight", "in_proj.bias")
    assert stats.groups["cold"].factor.item() == 1.0
    assert stats.total_norm.item() == pytest.approx(norm_of(before.values()), rel=1e-6)
    assert torch.equal(model["rest"].weight.grad, before["rest.weight"])
    assert norm_of([p.grad for p in model["in_proj"].parameters()]) == pytest.approx(1.0, rel=1e-5)
    assert stats.factor.tolist() == pytest.approx([1 / hot, 1 / hot, 1.0, 1.0], rel=1e-6)
    assert stats.clip_coef.item() == pytest.approx(1 / hot, rel=1e-6)


@pytest.mark.parametrize("p", [2.0, 1.0, math.inf, 3.0, 0.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_group_norms_of_every_order(p, dtype):
    torch.manual_seed(1)
    params = [nn.Parameter(torch.zeros(n, dtype=dtype)) for n in (5, 7, 1)]
    for param in params:
        param.grad = torch.randn_like(param)
    clipper = gradkern.GradClipper(
        params, groups={"a": (params[:2], math.inf), "b": (params[2:], None)}, norm_type=p
    )
    stats = clipper.clip_()
    for name, own in (("a", params[:2]), ("b", params[2:])):
        exact = torch.linalg.vector_norm(torch.cat([q.grad.double() for q in own]), p).item()
        assert stats.groups[name].total_norm.item() == pytest.approx(exact, rel=2.0**-22)


def test_selectors_and_that_the_first_match_wins():
    model = model_with_gradients()
    optimizer = torch.optim.SGD([model["in_proj"].weight], lr=0.1)
    groups = {
        "optimizer": (optimizer, 1.0),
        "biases": (lambda name, p: p.ndim == 1, 2.0),
        "module": (model["in_proj"], 3.0),
        "rest": ("rest.*", None),
    }
    with pytest.raises(
        ValueError, match="groups\\['module'\\]: has no parameters, because groups before it have all"
    ):
        gradkern.GradClipper(model, groups=groups)
    del groups["module"]
    stats = gradkern.GradClipper(model, groups=groups).clip_()
    assert {name: group.names for name, group in stats.groups.items()} == {
        "optimizer": ("in_proj.weight",),
        "biases": ("in_proj.bias", "rest.bias"),
        "rest": ("rest.weight",),
    }
    assert [stats.groups[name].threshold for name in groups] == [1.0, 2.0, None]


ERRORS = {
    "no group": ({"a": ("in_proj.*", 1.0)}, ValueError, r"no selector of 'a' matches 'rest\.weight'"),
    "nothing": (
        {"a": ("*", 1.0), "b": ("x.*", 1.0)},
        ValueError,
        r"groups\['b'\]: has no parameters, .* 'x\.\*' matches no name; names are like 'in_proj\.weight'",
    ),
    "misspelt": (
        {"a": ("in_proj.*", 1.0), "b": ("rset.*", 1.0)},
        ValueError,
        r"groups\['b'\]: has no parameters, .* 'rset\.\*' matches no name; similar are 'rest\.\*'",
    ),
    "no glob": (
        {"a": ("rest", 1.0), "b": ("*", 1.0)},
        ValueError,
        r"groups\['a'\]: has no parameters, .* 'rest' matches no name; similar are 'rest\.\*', 'rest\.bias'",
    ),
    "no match": (
        {"a": (lambda name, p: False, 1.0), "b": ("*", 1.0)},
        ValueError,
        r"groups\['a'\]: has no parameters, because its selector matches no parameter",
    ),
    "selector": ({"a": (3, 1.0)}, TypeError, r"groups\['a'\]: expected a glob over names, .*, got int"),
    "policy": (
        {"a": ("*", "1")},
        TypeError,
        r"groups\['a'\]: expected a policy, a number or None, got str; .*ZClip\(\); there are AGC, AdaGC, "
        "AutoClip, GlobalNorm, PerLayerNorm, Schedule, SkipOutliers, Value, ZClip$",
    ),
    "class": ({"a": ("*", ZClip)}, TypeError, r"got the class ZClip; pass an instance: ZClip\(\)"),
    "negative": ({"a": ("*", -1.0)}, ValueError, r"groups\['a'\]: expected a number that is not negative"),
    "no pair": (
        {"a": "2.*"},
        TypeError,
        r"expected a pair \(selector, policy\), where the policy may be a number or None, for 'a', got '2",
    ),
    "no name": ({1: ("*", 1.0)}, TypeError, "expected names that are strings, got 1"),
    "swapped": (
        {"a": (1.0, "2.*")},
        TypeError,
        r"groups\['a'\]: expected \(selector, policy\), in this order, got \(1\.0, '2",
    ),
    "swapped policy": ({"a": (ZClip(), "2.*")}, TypeError, r"expected \(selector, policy\), in this order"),
    "selector of one": (
        {"a": (lambda name: True, 1.0)},
        TypeError,
        r"groups\['a'\]: the selector is called with \(name, parameter\), got a function of \(name\)",
    ),
    "no mapping": ([("*", 1.0)], TypeError, "got list"),
    "empty": ({}, ValueError, "at least one group"),
}


@pytest.mark.parametrize(("groups", "kind", "message"), ERRORS.values(), ids=ERRORS)
def test_groups_that_are_none(groups, kind, message):
    with pytest.raises(kind, match=message):
        gradkern.GradClipper(model_with_gradients(), groups=groups)


def test_exactly_one_way_to_decide():
    model = model_with_gradients()
    for options in (
        {},
        {"max_norm": 1.0, "policy": ZClip()},
        {"policy": ZClip(), "groups": {"a": ("*", 1.0)}},
    ):
        with pytest.raises(TypeError, match="expected exactly one of the three, got"):
            gradkern.GradClipper(model, **options)


def test_a_policy_that_remembers_belongs_to_one_group():
    shared = ZClip()
    with pytest.raises(ValueError, match="'a' and 'b' share one ZClip"):
        gradkern.GradClipper(model_with_gradients(), groups={"a": ("in_proj.*", shared), "b": ("*", shared)})
    limit = GlobalNorm(1.0)
    gradkern.GradClipper(model_with_gradients(), groups={"a": ("in_proj.*", limit), "b": ("*", limit)})


@pytest.mark.parametrize("policy", [PerLayerNorm(), AGC(), Value(1.0)])
def test_a_fold_takes_one_factor(policy):
    params = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))]
    optimizer = torch.optim.SGD(params, lr=0.1, fused=True)
    with pytest.raises(
        ValueError, match="fold: cannot be combined with groups or with a policy that has several factors"
    ):
        gradkern.GradClipper(params, policy=policy, optimizer=optimizer, fold=True)
    with pytest.raises(
        ValueError, match="fold: cannot be combined with groups or with a policy that has several factors"
    ):
        gradkern.GradClipper(
            params, groups={"a": (params[:1], 1.0), "b": (params[1:], 1.0)}, optimizer=optimizer, fold=True
        )


def test_a_shared_parameter_is_in_the_first_group_and_scaled_once():
    shared = nn.Parameter(torch.zeros(2))
    shared.grad = torch.tensor([3.0, 4.0])
    pairs = [("a", shared), ("b", shared)]
    with pytest.raises(ValueError, match=r"groups\['last'\]: has no parameters"):
        gradkern.GradClipper(pairs, groups={"first": ("a", 1.0), "last": ("*", 0.1)})
    other = nn.Parameter(torch.zeros(1))
    other.grad = torch.ones(1)
    clipper = gradkern.GradClipper([*pairs, ("c", other)], groups={"first": ("a", 1.0), "last": ("*", None)})
    stats = clipper.clip_()
    assert stats.groups["first"].total_norm.item() == 5.0
    torch.testing.assert_close(shared.grad, torch.tensor([0.6, 0.8]))
    assert stats.factor[0] == stats.factor[1]


def test_gradients_that_share_memory_across_groups():
    memory = torch.ones(3)
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    groups, message = {"x": ("a", 0.1), "y": ("b", 0.1)}, "the gradients of 'a' of 'x' and 'b' of 'y' share"
    clipper = gradkern.GradClipper([("a", a), ("b", b)], groups=groups)
    a.grad, b.grad = memory[:2], memory[1:]
    with pytest.raises(ValueError, match=rf"\[GradClipper.clip_\] groups: {message}"):
        clipper.clip_()
    with pytest.raises(ValueError, match=rf"\[GradClipper\] groups: {message}"):
        gradkern.GradClipper([("a", a), ("b", b)], groups=groups)
    assert memory.tolist() == [1.0, 1.0, 1.0]
    gradkern.GradClipper([("a", a), ("b", b)], groups={"both": ("*", 0.1)}).clip_()


@pytest.mark.parametrize("native", [True, False])
def test_parameters_that_share_memory_across_groups(native, monkeypatch):
    if not native:
        monkeypatch.setattr("gradkern.clipping.overlap.C", NullBackend())
    memory = torch.ones(6)
    parts = {"a": nn.Parameter(memory[:3]), "b": nn.Parameter(memory[3:]), "c": nn.Parameter(memory[2:5])}
    groups = {"x": ("a", 0.1), "y": ("*", 0.1)}
    with pytest.warns(gradkern.GradkernWarning, match="share memory: 'a' of 'x' and 'c' of 'y'.*one Param"):
        clipper = gradkern.GradClipper(parts.items(), groups=groups)
    for p in parts.values():
        p.grad = torch.ones(3)
    assert clipper.clip_().groups["x"].total_norm.item() == pytest.approx(3**0.5)
    del parts["c"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradkern.GradClipper(parts.items(), groups=groups)
        on_meta = nn.Sequential(nn.Linear(2, 2, device="meta"), nn.Linear(2, 2, device="meta"))
        gradkern.GradClipper(on_meta, groups={"x": ("0.*", 0.1), "y": ("*", 0.1)})
        freed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        for p in freed.parameters():
            p.data.untyped_storage().resize_(0)
        gradkern.GradClipper(freed, groups={"x": ("0.*", 0.1), "y": ("*", 0.1)})


def test_decisions_by_the_norm_before_it_is_rounded_to_infinity():
    params = [nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(1))]
    params[0].grad, params[1].grad = torch.full((4,), 3.4e38), torch.ones(1)
    stats = gradkern.GradClipper(params, groups={"a": (params[:1], 1.0), "b": (params[1:], 5.0)}).clip_()
    assert stats.groups["a"].total_norm.item() == math.inf
    assert params[0].grad.tolist() == [0.5] * 4
    assert params[1].grad.tolist() == [1.0]


def test_a_nan_in_one_group():
    for on_nonfinite, expected in (("propagate", [1.0]), ("zero", [0.0]), ("skip", [1.0])):
        a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        a.grad, b.grad = torch.tensor([math.nan]), torch.ones(1)
        clipper = gradkern.GradClipper(
            [a, b], groups={"a": ([a], 1.0), "b": ([b], 1.0)}, on_nonfinite=on_nonfinite
        )
        stats = clipper.clip_()
        torch.testing.assert_close(b.grad, torch.tensor(expected), rtol=1e-5, atol=0)
        assert (stats.skip_step is not None and bool(stats.skip_step)) is (on_nonfinite == "skip")


def test_a_scaler_and_groups():
    params = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(params, lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    params[0].grad, params[1].grad = torch.tensor([24.0, 32.0]), torch.tensor([8.0])
    clipper = gradkern.GradClipper(params, groups={"a": (params[:1], 1.0), "b": (params[1:], None)})
    stats = clipper.clip_(scaler=scaler, optimizer=optimizer)
    assert stats.groups["a"].total_norm.item() == 5.0
    torch.testing.assert_close(params[0].grad, torch.tensor([0.6, 0.8]))
    assert params[1].grad.tolist() == [1.0]


def test_a_scaler_skips_the_step_that_a_group_skips():
    params = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(params, lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)
    groups = {"a": (params[:1], SkipOutliers(window=8, min_steps=4)), "b": (params[1:], 0.5)}
    clipper = gradkern.GradClipper(params, groups=groups)
    for step, size in enumerate([1.0, 1.1, 0.9, 1.0, 1.1, 1000.0, 1.0]):
        before = [p.detach().clone() for p in params]
        scale = scaler.get_scale()
        scaler.scale(torch.ones(()))
        for p in params:
            p.grad = torch.full_like(p, size * scale)
        stats = clipper.clip_(scaler=scaler, optimizer=optimizer)
        scaler.step(optimizer)
        scaler.update()
        spike = step == 5
        assert bool(stats.skip_step) is spike
        assert all(torch.equal(p, old) is spike for p, old in zip(params, before))
        assert scaler.get_scale() == (4.0 if step >= 5 else 8.0)
        assert stats.groups["b"].factor.item() == pytest.approx(
            1.0 if spike else min(1.0, 0.5 / size), rel=1e-5
        )


def test_different_policies_beside_each_other_and_their_state():
    def build():
        return gradkern.GradClipper(
            model_with_gradients(1.0),
            groups={
                "norms": ("in_proj.weight", AutoClip(50.0)),
                "units": ("rest.weight", AGC(0.01)),
                "values": ("*", Value(0.01)),
            },
        )

    clipper = build()
    stats = clipper.clip_()
    assert set(stats.groups) == {"norms", "units", "values"}
    state = clipper.state_dict()
    assert state["norms"]["state"][0].item() == 1.0 and state["units"] == {}
    other = build()
    other.load_state_dict(state)
    assert torch.equal(other.state_dict()["norms"]["state"], state["norms"]["state"])
    with pytest.raises(ValueError, match="state: expected groups"):
        other.load_state_dict({})
    with pytest.raises(ValueError, match="expected one that AutoClip"):
        other.load_state_dict({**state, "norms": {"kind": "zclip", "state": torch.zeros(3)}})


def test_replaced_parameters_are_grouped_again():
    model = model_with_gradients(1.0)
    clipper = gradkern.GradClipper(model, groups={"a": ("in_proj.*", 1.0), "b": ("*", None)})
    clipper.clip_()
    model["extra"] = nn.Linear(2, 2)
    model["extra"].weight.grad = torch.ones(2, 2)
    stats = clipper.clip_()
    assert stats.groups["b"].names[-1] == "extra.bias"


def test_the_optimizer_skips_an_outlier():
    param = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([param], lr=1.0, fused=True)
    clipper = gradkern.GradClipper([param], policy=SkipOutliers(window=8, min_steps=4), optimizer=optimizer)
    for value in (1.0, 1.1, 0.9, 1.0, 1000.0):
        param.grad = torch.tensor([value])
        stats = clipper.clip_()
        optimizer.step()
    assert bool(stats.skip_step)
    assert param.item() == pytest.approx(-4.0)
    assert clipper.state_dict()[""]["state"][0].item() == 4.0


def test_a_fold_takes_no_named_group():
    params = [torch.nn.Parameter(torch.zeros(3))]
    optimizer = torch.optim.SGD(params, lr=0.1, fused=True)
    with pytest.raises(
        ValueError, match="fold: cannot be combined with groups or with a policy that has several factors"
    ):
        gradkern.GradClipper(params, groups={"all": (params, 1.0)}, optimizer=optimizer, fold=True)


def test_an_iterator_as_a_selector_survives_a_model_that_grows():
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    clipper = gradkern.GradClipper(model, groups={"a": (model[0].parameters(), 1.0), "rest": ("*", None)})
    model.append(nn.Linear(2, 2))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    stats = clipper.clip_()
    assert stats.groups["a"].names == ("0.weight", "0.bias") and len(stats.groups["rest"].names) == 4


UNSERVED = {
    "complex": (Value(1.0), lambda: torch.full((2, 2), 5.0 + 1j), "expected a real gradient for the policy"),
    "uncoalesced": (
        Value(1.0),
        lambda: torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.full((2, 2), 5.0), (2, 2)),
        "expected a dense or a coalesced sparse gradient for the policy Value",
    ),
    "csr": (AGC(), lambda: torch.eye(2).to_sparse_csr(), ".* a strided or sparse COO gradient"),
    "rows in one place": (
        AGC(),
        lambda: torch.ones(1, 2).expand(2, 2),
        "the policy AGC needs a gradient whose elements share no memory",
    ),
    "columns in one place": (
        AGC(units="optax"),
        lambda: torch.ones(2, 1).expand(2, 2),
        "the policy AGC needs a gradient whose elements share no memory",
    ),
}
"""Gradients that elementwise policies do not accept."""


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize(("policy", "gradient", "message"), UNSERVED.values(), ids=UNSERVED)
def test_what_a_policy_does_not_take_is_refused_before_anything_changes(policy, gradient, message, slow):
    bad = gradient()
    weight = torch.zeros(2, 2, dtype=bad.dtype)
    model = nn.ParameterDict(
        {"a": torch.zeros(2), "b": weight.to_sparse_csr() if bad.layout is torch.sparse_csr else weight}
    )
    model["a"].grad, model["b"].grad = torch.full((2,), 5.0), bad
    memory = AutoClip()
    groups = {"a": ("a", memory if not slow else gradkern.policies.custom(lambda stats: 0.5))}
    clipper = gradkern.GradClipper(model, groups={**groups, "b": ("b", policy)})
    with pytest.raises((TypeError, ValueError), match=rf"'b'\)?: {message}"):
        clipper.clip_()
    assert model["a"].grad.tolist() == [5.0, 5.0]
    assert memory.state_dict().get("state", torch.zeros(1))[0] == 0


@pytest.mark.parametrize("route", ["scaler", "custom"])
def test_in_separate_steps_the_number_of_groups_adds_no_read_and_no_scaling(route, monkeypatch):
    from gradkern.distributed import packing
    from gradkern.kernels import scale

    calls = {"partials": 0, "scale_": 0}

    class Counting:
        def __init__(self, backend):
            self._backend = backend

        def __getattr__(self, name):
            calls[name] = calls.get(name, 0) + 1
            return getattr(self._backend, name)

    monkeypatch.setattr(packing, "C", Counting(packing.C))
    monkeypatch.setattr(scale, "C", Counting(scale.C))
    model = model_with_gradients()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    policy = gradkern.policies.custom(lambda stats: 0.5) if route == "custom" else 0.5
    for count, patterns in enumerate((["*"], ["in_proj.*", "*.bias", "*"]), start=1):
        scaler = torch.amp.GradScaler("cpu") if route == "scaler" else None
        if scaler is not None:
            scaler.scale(torch.zeros(1, requires_grad=True))
        clipper = gradkern.GradClipper(model, groups={p: (p, policy) for p in patterns})
        clipper.clip_(scaler=scaler, optimizer=optimizer)
        assert (calls["partials"], calls["scale_"]) == (count, count)


def test_a_clipper_shows_how_it_clips():
    model = model_with_gradients()
    assert repr(gradkern.GradClipper(model, 1.0)) == "GradClipper(4 parameters, max_norm=1.0)"
    agc = gradkern.GradClipper(model, policy=AGC(0.02), on_nonfinite="skip")
    assert repr(agc) == (
        "GradClipper(4 parameters, policy=AGC(clip_factor=0.02, eps=0.001, units='timm'), "
        "on_nonfinite='skip')"
    )
    groups = {"a": ("in_proj.*", PerLayerNorm(2.0)), "b": ("rest.weight", 0.5), "c": ("*", None)}
    assert repr(gradkern.GradClipper(model, groups=groups)) == (
        "GradClipper(4 parameters, groups={'a': (2, PerLayerNorm(max_norm=2.0)), "
        "'b': (1, GlobalNorm(max_norm=0.5)), 'c': (1, None)})"
    )
