"""The compiled steps of adaptive policies against their formulas, written again with numpy."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch

from gradkern.kernels.extension import EXTENSION as _C

INF = math.inf


def step(kind, total, state, constants, norms=None):
    rows = None if norms is None else torch.tensor(norms, dtype=torch.float64)
    return _C.policy_step_(kind, torch.tensor(total, dtype=torch.float64), state, constants, rows).tolist()


def fresh(size):
    return torch.zeros(size, dtype=torch.float64)


def norms_of(seed, count=400):
    generator = np.random.default_rng(seed)
    norms = generator.lognormal(0, 0.5, count)
    norms[generator.integers(30, count, 12)] *= 20  # spikes
    norms[generator.integers(30, count, 4)] = norms[3]  # ties
    return norms.tolist()


def factor_of(threshold, total):
    return min(1.0, threshold / (total + 1e-6))


@pytest.mark.parametrize("percentile", [0.0, 10.0, 50.0, 99.5, 100.0])
@pytest.mark.parametrize("window", [1, 2, 50, 1000])
def test_autoclip_is_the_percentile_of_the_norms_before(percentile, window):
    state, before = fresh(1 + 2 * window), []
    for total in norms_of(1):
        factor, skip, threshold = step("autoclip", total, state, (percentile, window))
        want = np.percentile(before[-window:], percentile) if before else INF
        assert threshold == pytest.approx(want, rel=1e-14)
        assert factor == pytest.approx(factor_of(want, total), rel=1e-14)
        assert skip == 0
        before.append(total)


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize(("max_norm", "clip_factor", "skip_update"), [(INF, 1.0, 0), (1.5, 0.7, 1)])
def test_zclip(mode, max_norm, clip_factor, skip_update):
    state, warmup, mean, variance = fresh(3), [], None, None
    for total in norms_of(2):
        constants = (0.97, 2.5, 25, mode, max_norm, 1e-6, clip_factor, skip_update)
        factor, skip, threshold = step("zclip", total, state, constants)
        limit = None
        if mean is not None:
            deviation = math.sqrt(variance)
            z = (total - mean) / (deviation + 1e-6)
            if mode == 0 and total > mean + 2.5 * deviation:
                limit = mean + 2.5 * deviation
            elif mode == 1 and z > 2.5:
                limit = (mean + 2.5 * deviation / (z / 2.5)) * clip_factor
            elif mode == 2 and z > 2.5:
                limit = mean
        want = min(INF if limit is None else limit, max_norm)
        assert threshold == pytest.approx(want, rel=1e-12)
        assert factor == pytest.approx(factor_of(want, total), rel=1e-12)
        assert skip == 0
        if mean is None:
            warmup.append(total)
            if len(warmup) == 25:
                mean, variance = statistics.fmean(warmup), statistics.pvariance(warmup)
        elif limit is None or not skip_update:
            entering = total if limit is None else limit
            mean = 0.97 * mean + 0.03 * entering
            variance = 0.97 * variance + 0.03 * (entering - mean) ** 2


@pytest.mark.parametrize("admit", [0, 1])
def test_outliers_are_skipped(admit):
    state, before, skips = fresh(1 + 32), [], 0
    for total in norms_of(3):
        factor, skip, limit = step("skip_outliers", total, state, (4.0, 32, 16, admit, 1.2))
        window = before[-32:]
        want = statistics.fmean(window) + 4 * statistics.stdev(window) if len(window) + 1 >= 16 else INF
        assert limit == pytest.approx(want, rel=1e-12)
        assert skip == (total > want)
        assert factor == (1.0 if skip else pytest.approx(factor_of(1.2, total), rel=1e-14))
        skips += int(skip)
        if admit or not skip:
            before.append(total)
    assert skips >= 3


def test_adagc():
    generator = np.random.default_rng(4)
    rows, beta, absolute, relative, warmup = 5, 0.98, 1.0, 1.05, 20
    state, gamma = fresh(1 + rows), np.zeros(rows)
    for t in range(120):
        norms = generator.lognormal(0, 0.7, rows)
        norms[1] *= 0 if t % 7 == 0 else 1  # a tensor that has no gradient in some steps, the first too
        norms[4] *= 0 if t < 40 else 1  # and one that has its first after the warm-up
        total = float(np.sqrt((norms**2).sum()))
        result = step("adagc", total, state, (beta, absolute, relative, warmup), norms)
        for i, norm in enumerate(norms):
            limit = INF if t < warmup else relative * gamma[i] if gamma[i] else absolute
            factor = factor_of(absolute, total) if t < warmup else factor_of(limit, norm)
            assert result[i] == pytest.approx(factor, rel=1e-12)
            assert result[rows + i] == pytest.approx(limit, rel=1e-12)
            clipped = norm * factor
            if clipped and not gamma[i]:
                gamma[i] = clipped
            elif clipped:
                gamma[i] = min(gamma[i], clipped) if t < warmup else beta * gamma[i] + (1 - beta) * clipped
        assert result[-1] == 0
    assert (gamma > 0).all()


CASES = {
    "autoclip": ((10.0, 8), 17),
    "zclip": ((0.97, 2.5, 3, 1, 2.0, 1e-6, 1.0, 0), 3),
    "skip_outliers": ((6.0, 8, 4, 0, 2.0), 9),
    "adagc": ((0.98, 1.0, 1.05, 3), 3),
}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("kind", CASES)
def test_a_total_that_is_not_finite_enters_no_state(kind, bad):
    constants, size = CASES[kind]
    state = fresh(size)
    for total in (1.0, 1.1, 0.9, 1.2, 1.05):
        step(kind, total, state, constants, [total, total / 2])
    before = state.clone()
    result = step(kind, bad, state, constants, [bad, bad])
    assert torch.equal(state, before)
    assert result[0] == 1.0
    assert result[1 if kind != "adagc" else -1] in (0.0, 1.0)


@pytest.mark.parametrize("kind", CASES)
def test_float32_totals_and_version_counters(kind):
    constants, size = CASES[kind]
    wide, narrow = fresh(size), fresh(size)
    norms = torch.tensor([0.5, 0.25])
    for total in (0.5, 0.75, 1.25, 8.0):
        a = _C.policy_step_(kind, torch.tensor(total, dtype=torch.float64), wide, constants, norms.double())
        b = _C.policy_step_(kind, torch.tensor(total), narrow, constants, norms)
        assert torch.equal(a, b)
    assert torch.equal(wide, narrow)
    assert wide._version == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mean", fresh(3), ()), "kind: expected nothing, global_norm, autoclip"),
        (("autoclip", fresh(3), (10.0,)), "constants: expected 2"),
        (("autoclip", fresh(3), (10.0, 0)), "window"),
        (("autoclip", fresh(4), (10.0, 1)), "state: expected float64 of length 3"),
        (("autoclip", fresh(3).float(), (10.0, 1)), "state: expected float64 of length 3"),
        (("adagc", fresh(3), (0.98, 1.0, 1.05, 3)), "norms: expected"),
    ],
)
def test_wrong_arguments(arguments, message):
    kind, state, constants = arguments
    with pytest.raises(ValueError, match=message):
        _C.policy_step_(kind, torch.tensor(1.0), state, constants)
