"""Checks of policies, groups and verdicts for every device: run on the CPU, and on a GPU by tests/cuda.

The reference is the float64 norm of the gradients on the host, and each policy's formula in Python's floats.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator

import pytest
import torch
from torch import Tensor, nn

import gradkern
from gradkern.policies import (
    AGC,
    AdaGC,
    AutoClip,
    GlobalNorm,
    PerLayerNorm,
    Policy,
    Schedule,
    SkipOutliers,
    Value,
    ZClip,
    custom,
)
from tests.support.device_checks import recorded

Quiet = Callable[[], contextlib.AbstractContextManager[None]]
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
SCALES = [1.0, 1.2, 0.9, 1.1, 8.0, 1.0, 0.8, 20.0, 1.1, 1.0]
"""The sizes of the gradients, step by step: two of them are outliers."""


def model_on(device: str, dtype: torch.dtype = torch.float32) -> nn.ModuleDict:
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": nn.Linear(33, 7), "second": nn.Linear(7, 5)})
    return model.to(device=device, dtype=dtype)


def fill(model: nn.Module, scale: float = 1.0, seed: int = 0) -> None:
    """The same gradients on every device. An existing gradient is written in place, as a CUDA graph needs."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        made = (torch.randn(p.shape, generator=generator, dtype=torch.float64) * scale).to(p.device, p.dtype)
        if p.grad is None:
            p.grad = made
        else:
            p.grad.copy_(made)


def gradients(model: nn.Module) -> list[Tensor]:
    """The gradients on the host, in float64."""
    return [p.grad.detach().cpu().double().clone() for p in model.parameters() if p.grad is not None]


def norm_of(grads: list[Tensor]) -> float:
    return math.sqrt(sum(float(g.square().sum()) for g in grads))


def limited(limit: float, norm: float) -> float:
    return min(1.0, limit / (norm + 1e-6))


def assert_scaled(params: Iterable[nn.Parameter], before: list[Tensor], factors: list[float]) -> None:
    """Each gradient by its factor, with one rounding to its dtype."""
    for p, old, factor in zip(params, before, factors, strict=True):
        tolerance = {torch.bfloat16: 2.0**-7, torch.float32: 1e-5, torch.float64: 1e-6}[p.dtype]
        torch.testing.assert_close(p.grad.cpu().double(), old * factor, rtol=tolerance, atol=1e-12)


def check_groups(device: str, dtype: torch.dtype, quiet: Quiet) -> None:
    """Norms, factors and thresholds of groups, in steps that do not synchronise."""
    model = model_on(device, dtype)
    groups = {"biases": ("*.bias", 0.5), "second": (model["second"], PerLayerNorm(0.25)), "rest": ("*", None)}
    clipper = gradkern.GradClipper(model, groups=groups)
    for step in range(3):
        fill(model, SCALES[step], step)
        before = gradients(model)
        with quiet() if step else contextlib.nullcontext():
            stats = clipper.clip_()
        biases = limited(0.5, norm_of([before[1], before[3]]))
        second = limited(0.25, norm_of([before[2]]))
        assert_scaled(model.parameters(), before, [1.0, biases, second, biases])
        assert stats.total_norm.item() == pytest.approx(norm_of(before), rel=1e-6)
        found = {name: (g.total_norm.item(), g.factor.item()) for name, g in stats.groups.items()}
        assert found["biases"] == pytest.approx((norm_of([before[1], before[3]]), biases), rel=1e-5)
        assert found["second"] == pytest.approx((norm_of([before[2]]), second), rel=1e-5)
        assert found["rest"] == pytest.approx((norm_of([before[0]]), 1.0), rel=1e-5)


def autoclip(norms: list[float]) -> Iterator[float]:
    for i, norm in enumerate(norms):
        latest = torch.tensor(norms[max(0, i - 4) : i], dtype=torch.float64)
        yield limited(latest.quantile(0.5).item(), norm) if i else 1.0


def zclip(norms: list[float]) -> Iterator[float]:
    mean, variance = 0.0, 0.0
    for i, norm in enumerate(norms):
        if i < 3:
            yield 1.0
            if i == 2:
                first = torch.tensor(norms[:3], dtype=torch.float64)
                mean, variance = first.mean().item(), first.var(unbiased=False).item()
            continue
        deviation = math.sqrt(variance)
        z = (norm - mean) / (deviation + 1e-6)
        entering = mean + 2.5 * deviation / (z / 2.5) if z > 2.5 else norm
        yield limited(entering, norm) if z > 2.5 else 1.0
        mean = 0.97 * mean + 0.03 * entering
        variance = 0.97 * variance + 0.03 * (entering - mean) ** 2


def skipping(norms: list[float]) -> Iterator[float]:
    """1 everywhere: nothing is scaled; see `check_skipped_outliers`."""
    yield from [1.0] * len(norms)


BY_NORM: dict[str, tuple[Callable[[], Policy], Callable[[list[float]], Iterator[float]]]] = {
    "GlobalNorm": (lambda: GlobalNorm(3.0), lambda norms: (limited(3.0, n) for n in norms)),
    "AutoClip": (lambda: AutoClip(50.0, 4), autoclip),
    "ZClip": (lambda: ZClip(warmup_steps=3), zclip),
    "SkipOutliers": (lambda: SkipOutliers(4.0, 4, min_steps=4), skipping),
    "Schedule": (
        lambda: Schedule(lambda step: 1.0 + step),
        lambda norms: (limited(1.0 + i, n) for i, n in enumerate(norms)),
    ),
    "custom": (
        lambda: custom(lambda stats: (2.0 / stats.deciding()).clamp(max=1.0)),
        lambda norms: (min(1.0, 2.0 / n) for n in norms),
    ),
}
"""Policies with one factor, and that factor from the norms of all steps so far."""


def check_policy_by_norm(device: str, name: str, quiet: Quiet) -> None:
    make, oracle = BY_NORM[name]
    model = model_on(device)
    clipper = gradkern.GradClipper(model, policy=make())
    before = []
    for step, scale in enumerate(SCALES):
        fill(model, scale, seed=0)
        before.append(gradients(model))
        with quiet() if step else contextlib.nullcontext():
            clipper.clip_()
        factor = list(oracle([norm_of(grads) for grads in before]))[-1]
        assert_scaled(model.parameters(), before[-1], [factor] * 4)


def check_adagc(device: str, quiet: Quiet) -> None:
    model = model_on(device)
    clipper = gradkern.GradClipper(model, policy=AdaGC(warmup_steps=2))
    means: list[float] = []
    for step, scale in enumerate(SCALES):
        fill(model, scale, seed=step)
        before = gradients(model)
        with quiet() if step else contextlib.nullcontext():
            clipper.clip_()
        norms = [norm_of([g]) for g in before]
        of_all = limited(1.0, norm_of(before))
        factors = [of_all] * 4 if step < 2 else [limited(1.05 * m, n) for m, n in zip(means, norms)]
        assert_scaled(model.parameters(), before, factors)
        clipped = [n * f for n, f in zip(norms, factors)]
        if step < 2:
            means = clipped if step == 0 else [min(pair) for pair in zip(means, clipped)]
        else:
            means = [0.98 * m + 0.02 * c for m, c in zip(means, clipped)]


def check_agc(device: str, dtype: torch.dtype, units: str, quiet: Quiet) -> None:
    """Units of weights by rows, or by columns in optax's convention; a bias is one unit."""
    model = model_on(device, dtype)
    clipper = gradkern.GradClipper(model, policy=AGC(0.05, units=units))
    dim = 0 if units == "optax" else 1
    for step in range(2):
        fill(model, 1.0, step)
        before = gradients(model)
        with quiet() if step else contextlib.nullcontext():
            stats = clipper.clip_()
        for row, (p, old) in enumerate(zip(model.parameters(), before)):
            weights = p.detach().cpu().double()
            over = (dim,) if p.ndim == 2 else (0,)
            largest = weights.square().sum(over, keepdim=True).sqrt().clamp(min=1e-3) * 0.05
            norm = old.square().sum(over, keepdim=True).sqrt()
            expected = old * torch.where(norm < largest, 1.0, largest / norm)
            tolerance = 2.0**-7 if dtype == torch.bfloat16 else 1e-5
            torch.testing.assert_close(p.grad.cpu().double(), expected, rtol=tolerance, atol=1e-12)
            ratio = norm_of([expected]) / norm_of([old])
            assert stats.factor[row].item() == pytest.approx(ratio, rel=1e-4)


def check_value(device: str, dtype: torch.dtype, quiet: Quiet) -> None:
    model = model_on(device, dtype)
    clipper = gradkern.GradClipper(model, groups={"a": ("first.*", Value(0.5)), "b": ("*", None)})
    for step in range(2):
        fill(model, 1.0, step)
        before = gradients(model)
        with quiet() if step else contextlib.nullcontext():
            stats = clipper.clip_()
        after = gradients(model)
        for row, old in enumerate(before):
            expected = old.clamp(-0.5, 0.5) if row < 2 else old
            assert torch.equal(after[row], expected)
            assert stats.factor[row].item() == pytest.approx(norm_of([expected]) / norm_of([old]), rel=1e-5)


def check_raise_later(device: str, wait: Callable[[], None]) -> None:
    """The step of a NaN is skipped; the error comes once, with the next call, and names the parameter."""
    model = model_on(device)
    clipper = gradkern.GradClipper(
        model, groups={"a": ("first.*", 1.0), "b": ("*", None)}, on_nonfinite="raise_later"
    )
    fill(model)
    assert not clipper.clip_().skip_step.item()
    fill(model)
    model["second"].weight.grad[0, 0] = math.nan
    before = gradients(model)
    assert clipper.clip_().skip_step.item()
    assert all(torch.equal(new.nan_to_num(), old.nan_to_num()) for new, old in zip(gradients(model), before))
    wait()
    with pytest.raises(RuntimeError, match=r"expected finite gradients, .*'second.weight' \(1 elements\)"):
        clipper.clip_()
    fill(model)
    clipper.clip_()
    clipper.check()


def check_skipped_outliers(device: str, quiet: Quiet) -> None:
    """A fused optimizer leaves the parameters as they are in the step of an outlier, and only there."""
    model = model_on(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    clipper = gradkern.GradClipper(
        model, policy=SkipOutliers(4.0, 4, min_steps=4), optimizer=optimizer, on_nonfinite="skip"
    )
    skipped = []
    for step, scale in enumerate([1.0, 1.2, 0.9, 1.1, 50.0, 1.0, math.nan, 1.0]):
        fill(model, scale)
        before = [p.detach().clone() for p in model.parameters()]
        with quiet() if step else contextlib.nullcontext():
            clipper.clip_()
            optimizer.step()
        skipped.append(all(torch.equal(p, old) for p, old in zip(model.parameters(), before)))
    assert skipped == [False] * 4 + [True, False, True, False]


def check_policies_on_replay(device: str) -> None:
    """Groups, policies with state, and a limit that is set, in a CUDA graph; on the CPU, repeated calls."""
    model = model_on(device)
    fill(model)
    memory = ZClip(warmup_steps=3)
    groups = {"limit": ("first.weight", 1.0), "memory": ("first.bias", memory), "rest": ("*", AGC())}
    clipper = gradkern.GradClipper(model, groups=groups)
    clipper.clip_()  # makes the places of limits, states and indices

    def call() -> list[Tensor]:
        stats = clipper.clip_()
        return [stats.total_norm, stats.factor]

    replay, results = recorded(device, call)
    seen = float(memory.state_dict()["state"][0])
    clipper.policies["limit"].max_norm = 0.25
    for step in range(3):
        fill(model, 1.0 + step)
        before = gradients(model)
        replay()
        assert results[0].item() == pytest.approx(norm_of(before), rel=1e-6)
        weight = limited(0.25, norm_of([before[0]]))
        assert results[1][0].item() == pytest.approx(weight, rel=1e-5)
        assert_scaled([model["first"].weight], [before[0]], [weight])
    assert float(memory.state_dict()["state"][0]) == seen + 3


def check_raise_later_on_replay(device: str) -> None:
    """Every replay since the last check counts; on the CPU every call."""
    model = model_on(device)
    groups = {"a": ("first.*", 1.0), "b": ("*", None)}
    clipper = gradkern.GradClipper(model, groups=groups, on_nonfinite="raise_later")
    fill(model)
    clipper.clip_()  # makes the place of the verdicts

    def call() -> list[Tensor]:
        skip = clipper.clip_().skip_step
        assert skip is not None
        return [skip]

    replays = [recorded(device, call) for _ in range(2)]
    for graph, bad in ((0, False), (0, True), (1, False), (0, False)):
        fill(model)
        if bad:
            model["second"].weight.grad[0, 0] = math.nan
        replay, results = replays[graph]
        replay()
        assert results[0].item() is bad
        if bad and device == "cpu":
            break  # no graph: the next call would raise
    with pytest.raises(RuntimeError, match=r"check\] .*'second.weight' \(1 elements\)"):
        clipper.check()
    clipper.check()
