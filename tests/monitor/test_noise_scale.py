"""The gradient noise scale of problems whose noise is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import gradkern

SMALL, MICRO_BATCHES, SIZE, SIGMA = 4, 8, 50, 0.3
BIG = SMALL * MICRO_BATCHES


def of_training(divided, steps=400):
    """``loss = |w - x|² / 2`` with x of variance SIGMA² an element, at a w that stays."""
    torch.manual_seed(0)
    model = nn.Linear(SIZE, 1, bias=False)
    truth = torch.full((SIZE,), 0.05)  # w - the mean of x
    with torch.no_grad():
        model.weight.zero_()
    factors = {"first_factor": MICRO_BATCHES} if divided else {"total_factor": 1 / MICRO_BATCHES}
    noise = gradkern.GradientNoiseScale(SMALL, BIG, smoothing=0.999, **factors)
    clipper = gradkern.GradClipper(model, math.inf)
    for _ in range(steps):
        for i in range(MICRO_BATCHES):
            x = -truth + SIGMA * torch.randn(SMALL, SIZE)
            loss = (model.weight - x).square().sum(dim=1).mean() / 2
            (loss / MICRO_BATCHES if divided else loss).backward()
            if i == 0:
                noise.first(gradkern.measure(model))
        noise.update(clipper.clip_())
        model.weight.grad = None
    return noise, SIZE * SIGMA**2, float(truth.square().sum())


@pytest.mark.parametrize("divided", [True, False])
def test_a_problem_with_known_noise(divided):
    noise, variance, signal = of_training(divided)
    found = noise.estimate()
    assert found.noise == pytest.approx(variance, rel=0.05)
    assert found.signal == pytest.approx(signal, rel=0.1)
    assert found.low < variance / signal < found.high and found.low < found.value < found.high
    assert found.high / found.low < 1.4 and found.steps == 400


def squared_norms(rng, steps, signal, size, sigma):
    """Squared norms of the mean gradient over the first SMALL samples, and over all BIG."""
    true = np.sqrt(signal / size)
    first = true + sigma / math.sqrt(SMALL) * rng.standard_normal((steps, size))
    rest = true + sigma / math.sqrt(BIG - SMALL) * rng.standard_normal((steps, size))
    whole = (SMALL * first + (BIG - SMALL) * rest) / BIG
    return (first**2).sum(1), (whole**2).sum(1)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        noise = gradkern.GradientNoiseScale(SMALL, BIG, smoothing=0.98)
        for small, big in zip(*squared_norms(rng, 150, 0.5, 40, 0.4)):
            noise._add(float(small), float(big))
        found = noise.estimate()
        inside += found.low <= 40 * 0.4**2 / 0.5 <= found.high
    assert 0.91 <= inside / 400 <= 0.985  # 95 %, three standard deviations of 400 trials, and few steps


def test_numerator_and_denominator_are_unbiased():
    rng = np.random.default_rng(1)
    noise = gradkern.GradientNoiseScale(SMALL, BIG, smoothing=0.0)
    found = []
    for small, big in zip(*squared_norms(rng, 20_000, 0.5, 10, 0.4)):
        noise._add(float(small), float(big))
        found.append((noise._sums["mean_noise"], noise._sums["mean_signal"]))
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / math.sqrt(20_000)
    assert (abs(mean - [10 * 0.4**2, 0.5]) < 4 * error).all()


def test_no_signal_is_an_unbounded_interval():
    rng = np.random.default_rng(2)
    noise = gradkern.GradientNoiseScale(SMALL, BIG)
    for small, big in zip(*squared_norms(rng, 100, 0.0, 40, 0.4)):
        noise._add(float(small), float(big))
    assert noise.estimate().high == math.inf


def test_before_the_first_step_and_with_norms_that_are_not_finite():
    noise = gradkern.GradientNoiseScale(SMALL, BIG)
    assert math.isnan(noise.estimate().value) and noise.estimate().steps == 0
    p = nn.Parameter(torch.ones(1))
    p.grad = torch.tensor([math.nan])
    bad = gradkern.measure([p])
    noise.first(bad)
    noise.update(bad)
    noise.update(bad)  # without a first
    assert noise.estimate().steps == 0


def test_its_state_goes_on():
    noise, *_ = of_training(True, steps=20)
    other = gradkern.GradientNoiseScale(SMALL, BIG, first_factor=MICRO_BATCHES, smoothing=0.999)
    other.load_state_dict(noise.state_dict())
    assert other.estimate() == noise.estimate()
    with pytest.raises(ValueError, match="load_state_dict] state: expected"):
        other.load_state_dict({})


def test_arguments_are_checked():
    for arguments, message in [
        ({"small": 0, "big": 8}, "small: expected a positive"),
        ({"small": 8, "big": 8}, "big: expected more samples than small=8, got 8"),
        ({"small": 1, "big": 8, "smoothing": 1.0}, "smoothing: expected a number from 0 to below 1"),
        ({"small": 1, "big": 8, "first_factor": -1.0}, "first_factor: expected a positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            gradkern.GradientNoiseScale(**arguments)
    p = nn.Parameter(torch.ones(1))
    p.grad = torch.ones(1)
    with pytest.raises(ValueError, match="expected norms of order 2, got 1"):
        gradkern.GradientNoiseScale(1, 8).first(gradkern.measure([p], norm_type=1.0))
