"""`GradClipper`: policies, fused optimizers that skip a step, and a model that changes."""

from __future__ import annotations

import gc
import math

import pytest
import torch
from torch import nn

import gradkern
from gradkern.kernels.torch_scale import coefficient
from tests.support import reference as ref
from tests.support.strategies import parameters


def model_with_gradients(scale=10.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    model(torch.randn(5, 4)).square().sum().mul(scale).backward()
    return model


def grads_of(model):
    return [p.grad.clone() for p in model.parameters()]


def poison(model, value=math.nan):
    model[2].weight.grad[1, 3] = value


POLICIES = ["propagate", "raise", "raise_later", "zero", "skip"]


@pytest.mark.parametrize("policy", POLICIES)
def test_finite_gradients_are_clipped_alike(policy):
    model, plain = model_with_gradients(), model_with_gradients()
    old = grads_of(model)
    stats = gradkern.GradClipper(model, 0.5, on_nonfinite=policy).clip_()
    total = gradkern.clip_grad_norm_(plain.parameters(), 0.5)
    assert stats.total_norm.item() == total.item()
    assert stats.clip_coef.item() == pytest.approx(ref.coefficient(0.5, total), rel=1e-7)
    for a, b, before in zip(model.parameters(), plain.parameters(), old):
        assert ref.bits(a.grad) == ref.bits(b.grad)
        ref.assert_scaled(a.grad, before, ref.coefficient(0.5, total))
    skips = policy in ("skip", "raise_later")
    assert (stats.skip_step is not None) == skips
    assert not skips or stats.skip_step.item() is False


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_is_written_below_the_limit(policy):
    model = model_with_gradients()
    before = [(ref.bits(p.grad), p.grad._version) for p in model.parameters()]
    stats = gradkern.GradClipper(model, 1e9, on_nonfinite=policy).clip_()
    assert stats.clip_coef.item() == 1.0
    assert before == [(ref.bits(p.grad), p.grad._version) for p in model.parameters()]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
class TestNonfinite:
    def test_propagate(self, value):
        model = model_with_gradients()
        poison(model, value)
        stats = gradkern.GradClipper(model, 1.0).clip_()
        assert not math.isfinite(stats.total_norm.item())
        assert model[2].weight.grad[1, 3].isnan()
        assert model[0].weight.grad.isnan().all() == math.isnan(value)

    def test_raise(self, value):
        model = model_with_gradients()
        poison(model, value)
        before = [ref.bits(p.grad) for p in model.parameters()]
        with pytest.raises(
            RuntimeError, match=r"\[GradClipper.clip_\] .*params\[2\] \('2.weight'\) \(1 of 16 elements\)"
        ) as raised:
            gradkern.GradClipper(model, 1.0, on_nonfinite="raise").clip_()
        advice = str(raised.value)
        assert "set on_nonfinite='propagate'." in advice and "error_if_nonfinite" not in advice
        with pytest.raises(RuntimeError, match="set `error_if_nonfinite=False`") as raised:
            gradkern.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        assert "on_nonfinite=" not in str(raised.value)
        assert before == [ref.bits(p.grad) for p in model.parameters()]

    def test_zero(self, value):
        model = model_with_gradients()
        poison(model, value)
        stats = gradkern.GradClipper(model, 1.0, on_nonfinite="zero").clip_()
        assert stats.clip_coef.item() == 0.0
        assert stats.nonfinite.tolist() == [0, 0, 1, 0]
        assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())

    def test_zero_also_with_an_infinite_max_norm(self, value):
        model = model_with_gradients()
        poison(model, value)
        gradkern.GradClipper(model, math.inf, on_nonfinite="zero").clip_()
        assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())

    def test_skip(self, value):
        model = model_with_gradients()
        poison(model, value)
        before = [(ref.bits(p.grad), p.grad._version) for p in model.parameters()]
        stats = gradkern.GradClipper(model, 1.0, on_nonfinite="skip").clip_()
        assert stats.skip_step.item() is True
        assert stats.skip_step.dtype == torch.bool
        assert before == [(ref.bits(p.grad), p.grad._version) for p in model.parameters()]
        assert stats.nonfinite_names() == ["2.weight"]


@pytest.mark.parametrize("policy", ["raise", "zero", "skip"])
def test_finite_gradients_whose_norm_overflows_are_not_called_bad(policy):
    params = parameters([torch.full((100,), 3e38)])
    stats = gradkern.GradClipper(params, 1.0, on_nonfinite=policy).clip_()
    assert stats.total_norm.item() == math.inf
    assert stats.nonfinite.tolist() == [0]


def step_of(optimizer, parameter):
    return float(optimizer.state[parameter]["step"])


@pytest.mark.parametrize(
    "make",
    [
        lambda ps: torch.optim.AdamW(ps, lr=0.1, fused=True),
        lambda ps: torch.optim.Adam(ps, lr=0.1, fused=True),
        lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, fused=True),
    ],
    ids=["AdamW", "Adam", "SGD"],
)
def test_a_fused_optimizer_skips_by_itself(make):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
    optimizer = make(model.parameters())
    clipper = gradkern.GradClipper(model, 1.0, on_nonfinite="skip", optimizer=optimizer)

    def step(value=None):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        if value is not None:
            model[0].weight.grad[0, 0] = value
        before = [p.detach().clone() for p in model.parameters()]
        state = [
            {k: v.clone() for k, v in optimizer.state[p].items() if torch.is_tensor(v)}
            for p in model.parameters()
        ]
        skipped = clipper.clip_().skip_step.item()
        optimizer.step()
        assert not hasattr(optimizer, "found_inf")
        moved = any(not torch.equal(p, b) for p, b in zip(model.parameters(), before))
        return skipped, moved, state

    assert step()[:2] == (False, True)
    for bad in (math.nan, math.inf):
        skipped, moved, state = step(bad)
        assert (skipped, moved) == (True, False)
        for p, old in zip(model.parameters(), state):
            for key, value in old.items():
                assert torch.equal(optimizer.state[p][key], value), key
    assert step()[:2] == (False, True)
    assert all(p.isfinite().all() for p in model.parameters())


def test_steps_taken_are_counted_without_the_skipped_one():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    clipper = gradkern.GradClipper(model, 1.0, on_nonfinite="skip", optimizer=optimizer)
    for bad in (False, True, False, True, True, False):
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        if bad:
            model.bias.grad.fill_(math.nan)
        clipper.clip_()
        optimizer.step()
    assert step_of(optimizer, model.weight) == 3.0


def test_nothing_stale_remains_for_a_step_without_clipping():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    clipper = gradkern.GradClipper(model, 1.0, on_nonfinite="skip", optimizer=optimizer)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    model.bias.grad.fill_(math.nan)
    clipper.clip_()
    optimizer.step()
    model.bias.grad.fill_(1.0)
    before = model.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, model.weight)


def test_beside_a_grad_scaler():
    """GradScaler uses the same attribute of a fused optimizer, and removes it."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    clipper = gradkern.GradClipper(model, 1.0, on_nonfinite="skip", optimizer=optimizer)
    for bad in (False, True, False):
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(1, 2)).sum()).backward()
        if bad:
            model.bias.grad.fill_(math.inf)
        before = model.weight.detach().clone()
        scaler.unscale_(optimizer)
        stats = clipper.clip_()
        scaler.step(optimizer)
        scaler.update()
        assert stats.skip_step.item() is bad
        assert torch.equal(before, model.weight) == bad
        assert not hasattr(optimizer, "found_inf")


class TestAModelThatChanges:
    def check(self, clipper, model):
        for p in model.parameters():
            p.grad = torch.full_like(p, 2.0)
        names = [n for n, _ in model.named_parameters()]
        stats = clipper.clip_()
        assert list(stats.names) == names
        assert clipper.names == stats.names
        assert stats.numel == tuple(p.numel() for p in model.parameters())
        for p in model.parameters():
            ref.assert_scaled(p.grad, torch.full_like(p, 2.0), ref.coefficient(0.1, stats.total_norm))

    @pytest.fixture
    def model(self):
        return nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3)), nn.Linear(3, 3))

    @pytest.fixture
    def clipper(self, model):
        made = gradkern.GradClipper(model, 0.1)
        self.check(made, model)
        return made

    def test_a_replaced_parameter(self, clipper, model):
        model[0].weight = nn.Parameter(torch.zeros(5, 3))
        self.check(clipper, model)

    def test_an_added_parameter(self, clipper, model):
        model[1].register_parameter("gain", nn.Parameter(torch.zeros(7)))
        self.check(clipper, model)

    def test_a_removed_parameter(self, clipper, model):
        del model[0].bias
        self.check(clipper, model)

    def test_a_parameter_set_to_none_and_back(self, clipper, model):
        model[2].bias = None
        self.check(clipper, model)
        model[2].bias = nn.Parameter(torch.zeros(3))
        self.check(clipper, model)

    def test_a_renamed_parameter(self, clipper, model):
        moved = model[0].bias
        del model[0].bias
        model[0].register_parameter("shift", moved)
        self.check(clipper, model)

    def test_added_and_removed_modules(self, clipper, model):
        model.append(nn.Linear(2, 2))
        self.check(clipper, model)
        model[1].append(nn.Linear(4, 4))
        self.check(clipper, model)
        del model[0]
        self.check(clipper, model)

    def test_a_module_in_the_place_of_a_freed_one(self, clipper, model):
        """Python may give the new module the address of the old."""
        for width in range(1, 10):
            model[1][0] = None
            gc.collect()
            model[1][0] = nn.Linear(width, 3)
            self.check(clipper, model)


def test_frozen_unused_and_shared_parameters():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(10, 4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.embed.weight
            self.frozen = nn.Linear(4, 4).requires_grad_(False)
            self.unused = nn.Linear(2, 2)

        def forward(self, x):
            return self.head(self.frozen(self.embed(x)))

    model = Tied()
    model(torch.tensor([1, 2])).square().sum().mul(100).backward()
    expected = ref.total_norm([model.embed.weight.grad])
    old = model.embed.weight.grad.clone()
    stats = gradkern.GradClipper(model, 0.5).clip_()
    assert stats.names == ("embed.weight", "frozen.weight", "frozen.bias", "unused.weight", "unused.bias")
    assert stats.has_grad == (True, False, False, False, False)
    ref.assert_norm(stats.total_norm.item(), expected, wide=False, ulp=ref.TOTAL_ULP)
    ref.assert_scaled(model.embed.weight.grad, old, ref.coefficient(0.5, stats.total_norm))


def test_pairs_and_plain_parameters():
    params = parameters([torch.tensor([3.0, 4.0]), None])
    pairs = gradkern.GradClipper([("a", params[0]), ("b", params[1])], 1.0)
    assert pairs.names == ("a", "b")
    assert pairs.clip_().total_norm.item() == 5.0
    assert gradkern.GradClipper(params, 1.0).names == ("0", "1")


def test_max_norm_can_be_scheduled():
    model = model_with_gradients()
    clipper = gradkern.GradClipper(model, math.inf)
    assert clipper.clip_().clip_coef.item() == 1.0
    clipper.max_norm = 0.25
    assert clipper.clip_().clip_coef.item() < 1.0
    assert gradkern.get_total_norm(grads_of(model)).item() == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("p", [1.0, math.inf, 3.0])
def test_other_orders(p):
    model = model_with_gradients()
    expected = ref.total_norm(grads_of(model), p)
    stats = gradkern.GradClipper(model, 0.5, norm_type=p).clip_()
    ref.assert_norm(stats.total_norm.item(), expected, wide=False, ulp=ref.TOTAL_ULP)
    assert stats.norm_type == p
    assert gradkern.get_total_norm(grads_of(model), p).item() == pytest.approx(0.5, rel=1e-5)


class TestSizesThatChange:
    def test_lazy_parameters(self):
        model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))
        assert gradkern.measure(model).numel == (0, 0, 3, 1)
        clipper = gradkern.GradClipper(model, 1.0)
        assert clipper.clip_().has_grad == (False,) * 4
        model(torch.ones(2, 5)).sum().backward()
        stats = clipper.clip_()
        assert stats.numel == (15, 3, 3, 1)
        assert stats.has_grad == (True,) * 4

    def test_a_parameter_whose_data_is_replaced(self):
        param = nn.Parameter(torch.zeros(4))
        clipper = gradkern.GradClipper([("w", param)], 100.0)
        param.data = torch.zeros(16)
        param.grad = torch.full((16,), 2.0)
        stats = clipper.clip_()
        assert stats.numel == (16,)
        assert stats.rms.tolist() == [2.0]


def test_what_is_set_between_steps_is_checked():
    param = torch.nn.Parameter(torch.zeros(2))
    param.grad = torch.tensor([3.0, 4.0])
    clipper = gradkern.GradClipper([param], 1.0)
    with pytest.raises(ValueError, match=r"\[GradClipper\] max_norm: expected a number, got NaN"):
        clipper.max_norm = math.nan
    with pytest.raises(TypeError, match=r"\[GradClipper\] max_norm: expected a number, got 'much'"):
        clipper.max_norm = "much"
    with pytest.raises(ValueError, match=r"on_nonfinite: expected one of propagate, .*, got 'rase'"):
        clipper.on_nonfinite = "rase"
    clipper.max_norm = 2.5
    assert clipper.clip_().clip_coef.item() == pytest.approx(0.5)
    with pytest.raises(TypeError, match=r"optimizer: expected a torch.optim.Optimizer, got str"):
        gradkern.GradClipper([param], 1.0, on_nonfinite="skip", optimizer="adam")


@pytest.mark.parametrize("fold", [False, True])
def test_zeros_are_counted_where_asked(fold):
    p = torch.nn.Parameter(torch.ones(5))
    p.grad = torch.tensor([0.0, 3.0, 0.0, -0.0, 4.0])
    optimizer = torch.optim.AdamW([p], fused=True) if fold else None
    counting = gradkern.GradClipper([p], 1.0, count_zeros=True, optimizer=optimizer, fold=fold)
    assert counting.clip_().zeros.tolist() == [3]
    assert gradkern.GradClipper([p], 1.0).clip_().zeros is None


@pytest.mark.parametrize("total", [0.1, 3.0, 7.7, 1e-3, 1e30])
def test_the_factor_of_every_route_has_the_kernels_bits(total):
    """A division, rounded once: not the product with a reciprocal."""
    for max_norm in (0.05, 0.3, 1.0, 1e-30):
        expected = min(1.0, max_norm / (total + 1e-6))
        assert float(coefficient(torch.tensor(total, dtype=torch.float64), max_norm)) == expected
    assert math.isnan(coefficient(torch.tensor(math.nan), 1.0))
