"""Policies against independent implementations of their formulas, for norms with spikes and NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import gradkern
from gradkern import policies
from gradkern.clipping.policies.decision import settled
from gradkern.kernels.backend import NullBackend
from gradkern.policies import (
    AGC,
    AdaGC,
    AutoClip,
    Decision,
    GlobalNorm,
    PerLayerNorm,
    Policy,
    Schedule,
    SkipOutliers,
    Value,
    ZClip,
    custom,
)

HOST = torch.device("cpu")
rng = np.random.default_rng(0)
NORMS = [*rng.lognormal(0, 0.3, 60), 50.0, *rng.lognormal(0, 0.3, 20), 1e30, *rng.lognormal(0.2, 0.3, 20)]


@pytest.fixture(params=["native", "torch"], autouse=True)
def route(request, monkeypatch):
    """Runs a test with and without the extension."""
    if request.param == "torch":
        for module in ("policy_steps", "scale"):
            monkeypatch.setattr(f"gradkern.kernels.{module}.C", NullBackend())
        monkeypatch.setattr("gradkern.clipping.route.C", NullBackend())
        monkeypatch.setattr("gradkern.clipping.clipper.C", NullBackend())
        for module in ("one_call", "overlap", "policies.value", "policies.agc"):
            monkeypatch.setattr(f"gradkern.clipping.{module}.C", NullBackend())


def clipped_norms(policy, norms, poison=()):
    """The norm after clipping of one gradient, step by step; NaN is put in at steps `poison`."""
    param = nn.Parameter(torch.zeros(3))
    clipper = gradkern.GradClipper([param], policy=policy)
    found = []
    for step, norm in enumerate(norms):
        if step in poison:
            param.grad = torch.tensor([math.nan, 1.0, 1.0])
            clipper.clip_()
        param.grad = torch.tensor([3.0, 0.0, 4.0]) / 5 * norm
        stats = clipper.clip_()
        skipped = stats.skip_step is not None and bool(stats.skip_step)
        found.append(math.nan if skipped else param.grad.double().norm().item())
    return found


def limited(norm, threshold):
    return norm * min(1.0, threshold / (norm + 1e-6))


def autoclip_oracle(norms, percentile, window):
    history = []
    for norm in norms:
        yield limited(norm, np.percentile(history[-window:], percentile) if history else math.inf)
        history.append(norm)


def zclip_oracle(norms, alpha, z_thresh, warmup, mode, max_norm):
    buffer, mean, var = [], None, None
    for norm in norms:
        if mean is None:
            buffer.append(norm)
            yield limited(norm, max_norm)
            if len(buffer) == warmup:
                mean, var = np.mean(buffer), np.var(buffer)
            continue
        std = math.sqrt(var)
        z = (norm - mean) / (std + 1e-6)
        clip = None
        if mode == "percentile":
            clip = mean + z_thresh * std if norm > mean + z_thresh * std else None
        elif z > z_thresh:
            clip = mean + z_thresh * std / (z / z_thresh) if mode == "adaptive_scaling" else mean
        yield limited(norm, min(math.inf if clip is None else clip, max_norm))
        entering = norm if clip is None else clip
        mean = alpha * mean + (1 - alpha) * entering
        var = alpha * var + (1 - alpha) * (entering - mean) ** 2


def skip_oracle(norms, sigma, window, min_steps):
    history = []
    for norm in norms:
        latest = history[-window:]
        begun = len(history) + 1 >= min_steps and len(latest) > 1
        if begun and norm > np.mean(latest) + sigma * np.std(latest, ddof=1):
            yield math.nan
            continue
        history.append(norm)
        yield norm


def adagc_oracle(norms, beta, lambda_abs, lambda_rel, warmup):
    gamma = None
    for step, norm in enumerate(norms):
        clipped = limited(norm, lambda_abs if step < warmup else lambda_rel * gamma)
        if step < warmup:
            gamma = clipped if gamma is None else min(gamma, clipped)
        else:
            gamma = beta * gamma + (1 - beta) * clipped
        yield clipped


ORACLES = {
    "AutoClip": (lambda: AutoClip(10.0, 30), lambda n: autoclip_oracle(n, 10.0, 30)),
    "AutoClip, median": (lambda: AutoClip(50.0), lambda n: autoclip_oracle(n, 50.0, 1000)),
    **{
        f"ZClip, {mode}": (
            lambda mode=mode: ZClip(mode=mode, max_norm=3.0),
            lambda n, mode=mode: zclip_oracle(n, 0.97, 2.5, 25, mode, 3.0),
        )
        for mode in ("adaptive_scaling", "mean", "percentile")
    },
    "SkipOutliers": (lambda: SkipOutliers(4.0, 32), lambda n: skip_oracle(n, 4.0, 32, 20)),
    "AdaGC": (lambda: AdaGC(warmup_steps=20), lambda n: adagc_oracle(n, 0.98, 1.0, 1.05, 20)),
    "GlobalNorm": (lambda: GlobalNorm(0.9), lambda n: (limited(x, 0.9) for x in n)),
    "Schedule": (
        lambda: Schedule.warmup(0.1, 1.1, 10),
        lambda n: (limited(x, 0.1 + min(1, i / 10)) for i, x in enumerate(n)),
    ),
}


@pytest.mark.parametrize(("build", "oracle"), ORACLES.values(), ids=ORACLES)
def test_formulas(build, oracle):
    norms = [float(np.float32(n)) for n in NORMS]
    np.testing.assert_allclose(clipped_norms(build(), norms), list(oracle(norms)), rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in ORACLES if n not in ("GlobalNorm", "Schedule")])
def test_nan_enters_no_baseline(name):
    build, _ = ORACLES[name]
    assert clipped_norms(build(), NORMS[:50], poison={3, 30}) == pytest.approx(
        clipped_norms(build(), NORMS[:50]), nan_ok=True
    )


@pytest.mark.parametrize("name", list(ORACLES))
def test_a_saved_state_goes_on_where_it_was(name):
    build, _ = ORACLES[name]
    whole, first, second = build(), build(), build()
    expected = clipped_norms(whole, NORMS[:60])
    clipped_norms(first, NORMS[:40])
    second.load_state_dict(first.state_dict())
    assert clipped_norms(second, NORMS[40:60]) == pytest.approx(expected[40:], nan_ok=True)


def olmo_core_skips(norms, sigma, window):
    """The steps that OLMo-core's `SkipStepOptimizer` skips by the norm: from step max(20, window / 2) on,
    those whose z-score, up or down, is not at most sigma. Every norm enters the window."""
    found = []
    for step, norm in enumerate(norms, 1):
        latest = np.array(norms[max(0, step - 1 - window) : step - 1])
        if step < max(20, window // 2):
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            z = abs(norm - latest.mean()) / latest.std(ddof=1)
        if not z <= sigma:
            found.append(step)
    return found


def skipped_steps(policy, norms):
    return [step for step, norm in enumerate(clipped_norms(policy, norms), 1) if math.isnan(norm)]


@pytest.mark.parametrize(("sigma", "window"), [(6.0, 128), (4.0, 16), (4.0, 60)])
def test_outliers_are_those_of_olmo_core(sigma, window):
    """With `admit_outliers`, and only for outliers above the mean."""
    random = np.random.default_rng(0)
    norms = np.exp(np.cumsum(random.normal(0, 0.01, 400)) + random.normal(0, 0.05, 400))
    norms[[70, 72, 150, 151, 300]] *= [2, 3, 4, 8, 3]
    norms = [float(np.float32(n)) for n in norms]
    expected = olmo_core_skips(norms, sigma, window)
    assert len(expected) >= 3 and all(norms[step - 1] > np.median(norms) for step in expected)
    assert skipped_steps(SkipOutliers(sigma, window, admit_outliers=True), norms) == expected


def test_where_outliers_differ_from_olmo_core():
    steady = [1.0 + 0.01 * (i % 5) for i in range(80)]
    twice = [*steady, 30.0, 10.0, 1.0]  # in OLMo-core the first hides the second
    assert olmo_core_skips(twice, 6.0, 128) == [81]
    assert skipped_steps(SkipOutliers(), twice) == [81, 82]
    low = [*steady, 0.5, 1.0]
    assert olmo_core_skips(low, 6.0, 128) == [81]
    assert skipped_steps(SkipOutliers(), low) == []
    equal = [1.0] * 80
    assert olmo_core_skips(equal, 6.0, 128) == list(range(64, 81))
    assert skipped_steps(SkipOutliers(), equal) == []


def test_a_zero_gradient_in_warm_up_does_not_hold_adagc_at_zero():
    found = clipped_norms(AdaGC(warmup_steps=3), [1.0, 0.0, 1.0, 1.0, 1.0])
    assert found[-1] > 0.9


def test_layers_by_themselves():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    for i, p in enumerate(model.parameters()):
        p.grad = torch.randn_like(p) * (100.0 if i < 2 else 0.01)
    kept = [p.grad.clone() for p in model[1].parameters()]
    stats = gradkern.GradClipper(model, policy=PerLayerNorm(1.0)).clip_()
    first = torch.cat([p.grad.flatten() for p in model[0].parameters()])
    assert first.norm().item() == pytest.approx(1.0, rel=1e-5)
    assert all(torch.equal(a, p.grad) for a, p in zip(kept, model[1].parameters()))
    assert stats.factor[2:].tolist() == [1.0, 1.0]
    whole = gradkern.GradClipper(model, policy=PerLayerNorm(0.5, depth=0)).clip_()
    assert len(set(whole.factor.tolist())) == 1


def agc_oracle(w, g, clip, eps, dims):
    w, g = w.astype(np.float64), g.astype(np.float64)
    largest = clip * np.maximum(np.sqrt((w**2).sum(axis=dims, keepdims=True)), eps)
    norm = np.sqrt((g**2).sum(axis=dims, keepdims=True))
    return np.where(norm < largest, g, g * (largest / np.maximum(norm, 1e-6)))


SHAPES = [(), (7,), (5, 7), (3, 4, 5), (2, 3, 4, 5), (2, 3, 2, 2, 3)]
UNITS = {
    "timm": lambda n: tuple(range(1, n)) if n > 1 else tuple(range(n)),
    "pytorch_optimizer": lambda n: (1,) if n in (2, 3) else tuple(range(1, n)) if n > 1 else tuple(range(n)),
    "optax": lambda n: (0,) if n in (2, 3) else tuple(range(n - 1)) if n > 1 else tuple(range(n)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("units", UNITS)
def test_agc(units, dtype):
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in SHAPES]
    for p in params:
        p.grad = torch.randn_like(p) * torch.rand(p.shape, dtype=torch.float64).pow(6).to(dtype)
    before = [p.grad.double().numpy().copy() for p in params]
    stats = gradkern.GradClipper(params, policy=AGC(0.3, units=units)).clip_()
    eps = torch.finfo(dtype).eps
    for row, (p, old) in enumerate(zip(params, before)):
        want = agc_oracle(p.detach().double().numpy(), old, 0.3, 1e-3, UNITS[units](p.ndim))
        np.testing.assert_allclose(p.grad.double().numpy(), want, rtol=2 * eps, atol=1e-30)
        ratio = np.linalg.norm(want) / np.linalg.norm(old)
        assert stats.factor[row].item() == pytest.approx(ratio, rel=1e-6)


def test_agc_as_a_function():
    p = nn.Parameter(torch.ones(2, 2))
    p.grad = torch.tensor([[30.0, 40.0], [1e-4, 0.0]])
    gradkern.adaptive_clip_grad_([p, p, nn.Parameter(torch.ones(1))], 0.1)
    expected = torch.tensor([[0.6, 0.8], [1e-4, 0.0]]) * torch.tensor([[0.1 * math.sqrt(2)], [1.0]])
    torch.testing.assert_close(p.grad, expected)
    with pytest.raises(ValueError, match=r"\[adaptive_clip_grad_\] norm_type: expected 2"):
        gradkern.adaptive_clip_grad_([p], norm_type=1.0)
    with pytest.raises(ValueError, match="clip_factor: expected a number of at least 0"):
        gradkern.adaptive_clip_grad_([p], -1.0)


def test_value():
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.tensor([-3.0, 0.5, 4.0])
    stats = gradkern.GradClipper([p], policy=Value(1.0)).clip_()
    assert p.grad.tolist() == [-1.0, 0.5, 1.0]
    assert stats.factor.item() == pytest.approx(1.5 / math.sqrt(25.25), rel=1e-6)
    z = nn.Parameter(torch.zeros(1, dtype=torch.complex64))
    z.grad = torch.ones(1, dtype=torch.complex64)
    with pytest.raises(TypeError, match=r"'0'\)?: expected a real gradient for the policy Value"):
        gradkern.GradClipper([z], policy=Value(1.0)).clip_()


@pytest.mark.parametrize("policy", [AGC(0.01), Value(0.01)])
def test_a_skipped_step_keeps_its_gradients(policy):
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.tensor([5.0, math.inf, 5.0])
    stats = gradkern.GradClipper([p], policy=policy, on_nonfinite="skip").clip_()
    assert bool(stats.skip_step) and p.grad[0].item() == 5.0


def test_functions_as_policies():
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def clip(decide):
        a.grad, b.grad = torch.ones(1), torch.ones(1)
        return gradkern.GradClipper([a, b], policy=custom(decide)).clip_()

    clip(lambda stats: 0.5)
    assert (a.grad.item(), b.grad.item()) == (0.5, 0.5)
    clip(lambda stats: torch.tensor([0.5, 1.0]))
    assert (a.grad.item(), b.grad.item()) == (0.5, 1.0)
    skipped = clip(lambda stats: Decision(torch.tensor(0.5), stats.total_norm > 1))
    assert bool(skipped.skip_step) and a.grad.item() == 1.0
    with pytest.raises(ValueError, match=r"expected one number or one for each of 2 rows, got \(3,\)"):
        clip(lambda stats: torch.ones(3))
    with pytest.raises(TypeError, match="expected a function of GradStats, got int"):
        custom(3)


class Always(Policy):
    """A policy that decides one thing."""

    def __init__(self, decision):
        self.decision = decision

    def decide(self, stats):
        return self.decision


def by_groups(params, policy):
    return gradkern.GradClipper(params, groups={"a": ("0", policy), "rest": ("*", None)})


MADE = {"policy": lambda ps, policy: gradkern.GradClipper(ps, policy=policy), "groups": by_groups}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
@pytest.mark.parametrize(
    ("decision", "error", "said"),
    [
        (Decision(torch.tensor(-1.0)), ValueError, "expected numbers that are not negative"),
        (Decision(torch.ones(3)), ValueError, r"expected one number or one for each of \d rows, got \(3,\)"),
        (None, TypeError, "expected a Decision, or a factor as a number or a tensor, got NoneType"),
    ],
)
def test_nonsense_that_a_policy_decides_changes_nothing(make, decision, error, said):
    params = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    for p in params:
        p.grad = torch.full((1,), 3.0)
    with pytest.raises(error, match=rf"\[Always.decide\] .*{said}"):
        make(params, Always(decision)).clip_()
    assert [p.grad.item() for p in params] == [3.0, 3.0]


def test_a_negative_factor_that_only_a_device_sees_is_no_factor():
    """Its sign cannot be checked without a synchronisation, so it counts as 1; NaN stays NaN."""
    meta = torch.device("meta")
    found = settled(Decision(torch.full((2,), -1.0, device=meta)), 2, meta, "Always")
    assert found.factor.is_meta and found.factor.shape == (2,)
    with FakeTensorMode():
        assert settled(Decision(torch.full((2,), -1.0)), 2, torch.device("cpu"), "Always").factor.shape == (
            2,
        )
    batch = torch.vmap(lambda f: settled(Decision(f), 2, torch.device("cpu"), "Always").factor)
    torch.testing.assert_close(
        batch(torch.tensor([-1.0, 0.5, math.nan])),
        torch.tensor([1.0, 0.5, math.nan]).double(),
        equal_nan=True,
    )


ARGUMENTS = {
    "percentile": lambda: AutoClip(101),
    "window": lambda: AutoClip(window=0),
    "window, half": lambda: AutoClip(window=2.5),
    "window, infinite": lambda: SkipOutliers(window=math.inf),
    "warmup_steps": lambda: AdaGC(warmup_steps=math.inf),
    "steps": lambda: Schedule.warmup(0.1, 1.0, 2.5),
    "mode": lambda: ZClip(mode="median"),
    "alpha": lambda: ZClip(alpha=1.5),
    "sigma": lambda: SkipOutliers(-1.0),
    "beta": lambda: AdaGC(beta=-0.1),
    "clip_value": lambda: Value(-1.0),
    "units": lambda: AGC(units="rows"),
    "max_norm": lambda: PerLayerNorm(-1.0),
    "depth": lambda: PerLayerNorm(depth=-1),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_are_checked(name):
    with pytest.raises(ValueError, match=name.split(",")[0]):
        ARGUMENTS[name]()


def test_every_policy_works_with_its_defaults_and_is_described():
    for name in ("AGC", "AdaGC", "AutoClip", "GlobalNorm", "PerLayerNorm", "SkipOutliers", "Value", "ZClip"):
        p = nn.Parameter(torch.ones(3))
        p.grad = torch.ones(3)
        stats = gradkern.GradClipper([p], policy=getattr(policies, name)()).clip_()
        assert stats.policy["class"] == name and stats.policy["on_nonfinite"] == "propagate"


@pytest.mark.parametrize("name", gradkern.policies.__all__)
def test_a_policy_that_is_looked_for_in_the_package_is_pointed_to(name):
    with pytest.raises(AttributeError, match=f"no attribute '{name}'; use gradkern.policies.{name}"):
        getattr(gradkern, name)
