"""Settings that are changed between steps, and steps of groups in which a function raises."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import gradkern
from gradkern import policies
from gradkern.kernels.backend import NullBackend
from gradkern.policies import Decision, Schedule, ZClip, custom

#: By policy and setting: a valid value, and invalid values with their error.
SETTINGS = {
    "AGC": {
        "clip_factor": (0.5, (-1.0, math.nan, "1")),
        "eps": (0.1, (-1.0,)),
        "units": ("optax", ("rows", ["timm"], None)),
    },
    "AdaGC": {
        "beta": (0.5, (-0.1, 1.1, math.nan)),
        "lambda_abs": (2.0, (-1.0, None)),
        "lambda_rel": (2.0, (-1.0,)),
        "warmup_steps": (3, (-1, 2.5, math.inf)),
    },
    "AutoClip": {"percentile": (50.0, (-50.0, 500.0, "x")), "window": (1000.0, (0, -5, 2.5, math.inf))},
    "GlobalNorm": {"max_norm": (0.5, (-1.0, math.nan, "1"))},
    "PerLayerNorm": {"max_norm": (0.5, (-1.0, math.nan, "1")), "depth": (0, (-1, 1.5))},
    "SkipOutliers": {
        "sigma": (2.0, (-1.0, math.nan)),
        "window": (128.0, (1, 0, 2.5, math.inf)),
        "min_steps": (30, (1, 2.5, None)),
        "max_norm": (0.5, (-3.0, math.nan)),
        "admit_outliers": (1, ()),
    },
    "Value": {"clip_value": (0.5, (-1.0, math.nan, "1"))},
    "ZClip": {
        "alpha": (0.5, (-0.1, 5.0)),
        "z_thresh": (1.0, (-1.0, math.nan)),
        "warmup_steps": (3, (0, 2.5)),
        "mode": ("mean", ("foo", 1, ["mean"])),
        "max_norm": (0.5, (-1.0, math.nan)),
        "clip_factor": (0.5, (-1.0,)),
        "skip_update_on_spike": (1, ()),
        "eps": (0.1, (-1.0,)),
    },
}
CASES = [(policy, name) for policy, settings in SETTINGS.items() for name in settings]


@pytest.fixture(params=["one call", "steps"])
def route(request, monkeypatch):
    if request.param == "steps":
        monkeypatch.setattr("gradkern.clipping.one_call.C", NullBackend())


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


def step(clipper, params, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
    clipper.clip_()
    return [p.grad.tolist() for p in params]


def test_all_settings_are_listed():
    for name, settings in SETTINGS.items():
        policy = getattr(policies, name)()
        attributes = {key for key in vars(policy) if not key.startswith("_")}
        assert attributes | ({"max_norm"} & set(dir(policy))) == set(settings)
    assert set(policies.__all__) - set(SETTINGS) == {
        *("Decision", "ElementPolicy", "Policy", "Schedule", "custom")
    }


@pytest.mark.parametrize(("policy", "setting"), CASES)
def test_a_setting_that_is_refused_is_not_changed(policy, setting, route):
    kind = getattr(policies, policy)
    net, twin = model(), model()
    changed, other = kind(), kind()
    clippers = [gradkern.GradClipper(m, policy=p) for m, p in ((net, changed), (twin, other))]
    for seed in range(4):
        assert step(clippers[0], list(net.parameters()), seed) == step(
            clippers[1], list(twin.parameters()), seed
        )
    before = getattr(changed, setting)
    for value in SETTINGS[policy][setting][1]:
        with pytest.raises((TypeError, ValueError)) as now:
            setattr(changed, setting, value)
        assert str(now.value).startswith(f"[{policy}] {setting}: ")
        assert getattr(changed, setting) == before
        if not (setting == "min_steps" and value is None):  # the default there
            with pytest.raises(type(now.value)) as made:
                kind(**{setting: value})
            assert str(made.value) == str(now.value)
    for seed in range(4, 8):
        assert step(clippers[0], list(net.parameters()), seed) == step(
            clippers[1], list(twin.parameters()), seed
        )


@pytest.mark.parametrize(("policy", "setting"), CASES)
def test_a_setting_that_is_changed_counts_from_the_next_step(policy, setting, route):
    kind, value = getattr(policies, policy), SETTINGS[policy][setting][0]
    net, twin = model(), model()
    changed, built = kind(), kind(**{setting: value})
    first, second = gradkern.GradClipper(net, policy=changed), gradkern.GradClipper(twin, policy=built)
    step(first, list(net.parameters()))
    empty = kind().state_dict()
    first.load_state_dict({"": empty})
    setattr(changed, setting, value)
    assert type(getattr(changed, setting)) is type(getattr(built, setting))
    for seed in range(4):
        assert step(first, list(net.parameters()), seed) == step(second, list(twin.parameters()), seed)


@pytest.mark.parametrize("decided", ["raises", "shape", "threshold"])
@pytest.mark.parametrize("order", [("z", "s", "f"), ("f", "z", "s")])
def test_a_function_that_raises_changes_no_state_of_other_groups(order, decided, route):
    params = {name: nn.Parameter(torch.ones(3)) for name in "zsf"}
    wrong = []

    def decide(stats):
        if not wrong:
            return 0.5
        if decided == "raises":
            raise KeyError("x")
        return torch.ones(5) if decided == "shape" else Decision(0.5, threshold=torch.ones(5))

    by_name = {"z": ZClip(), "s": Schedule(lambda step: 1.0), "f": custom(decide)}
    clipper = gradkern.GradClipper(
        [(name, params[name]) for name in order], groups={name: (name, by_name[name]) for name in order}
    )
    for seed in range(3):
        step(clipper, params.values(), seed)
    before = copy.deepcopy(clipper.state_dict())
    wrong.append(True)
    with pytest.raises((KeyError, ValueError)):
        step(clipper, params.values(), 3)
    assert torch.equal(clipper.state_dict()["z"]["state"], before["z"]["state"])
    assert clipper.state_dict()["s"] == before["s"] == {"step": 3}
    step_before = [p.grad.clone() for p in params.values()]
    wrong.clear()
    clipper.clip_()
    assert clipper.state_dict()["z"]["state"][0] == 4 and clipper.state_dict()["s"] == {"step": 4}
    assert torch.equal(params["f"].grad, step_before[2] * 0.5)


def test_a_schedule_that_raises_changes_no_state_of_other_groups(route):
    params = {name: nn.Parameter(torch.ones(3)) for name in "zab"}
    clipper = gradkern.GradClipper(
        params.items(),
        groups={
            "z": ("z", ZClip()),
            "a": ("a", Schedule(lambda step: 1.0)),
            "b": ("b", Schedule(lambda step: 1.0 - step)),
        },
    )
    step(clipper, params.values(), 0)
    step(clipper, params.values(), 1)
    before = copy.deepcopy(clipper.state_dict())
    with pytest.raises(ValueError, match=r"\[Schedule\] max_norm"):
        step(clipper, params.values(), 2)
    assert torch.equal(clipper.state_dict()["z"]["state"], before["z"]["state"])
    assert clipper.state_dict()["a"] == clipper.state_dict()["b"] == {"step": 2}


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(
    ("threshold", "kind", "said"),
    [
        ("x", TypeError, "threshold: expected a number, got 'x'"),
        (torch.ones(3), ValueError, r"threshold: expected one real number or one for each of \d rows, got"),
        (torch.ones((), dtype=torch.complex64), ValueError, "threshold: expected one real number"),
    ],
)
def test_a_threshold_is_checked_with_the_decision(threshold, kind, said, grouped):
    net = model()
    policy = custom(lambda stats: Decision(0.5, threshold=threshold))
    if grouped:
        clipper = gradkern.GradClipper(net, groups={"a": ("0.*", policy), "b": ("*", None)})
    else:
        clipper = gradkern.GradClipper(net, policy=policy)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(kind, match=rf"\[custom.decide\] {said}"):
        clipper.clip_()
    assert all(p.grad.eq(1).all() for p in net.parameters())


@pytest.mark.parametrize("threshold", [None, 2, 2.0, torch.tensor(2.0), torch.full((4,), 2.0)])
def test_thresholds_that_are_numbers_are_kept(threshold):
    net = model()
    step(gradkern.GradClipper(net, policy=custom(lambda stats: 1.0)), list(net.parameters()))
    stats = gradkern.GradClipper(net, policy=custom(lambda _: Decision(0.5, threshold=threshold))).clip_()
    assert stats.threshold is None if threshold is None else (torch.as_tensor(stats.threshold) == 2).all()


@pytest.mark.parametrize("name", ["AutoClip", "ZClip", "AdaGC", "SkipOutliers"])
@pytest.mark.parametrize("bad", [math.nan, -7.0])
def test_a_damaged_state_is_not_loaded(name, bad):
    net = model()
    clipper = gradkern.GradClipper(net, policy=getattr(policies, name)())
    step(clipper, list(net.parameters()))
    before = copy.deepcopy(clipper.state_dict())
    damaged = copy.deepcopy(before)
    damaged[""]["state"][0] = bad
    with pytest.raises(ValueError, match=rf"\[{name}.load_state_dict\] state: expected numbers of at least"):
        clipper.load_state_dict(damaged)
    assert torch.equal(clipper.state_dict()[""]["state"], before[""]["state"])
