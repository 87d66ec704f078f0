"""More than 2^31 elements, in one tensor and in a list. Several gigabytes: pytest -m slow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import gradkern
from tests.support import reference as ref
from tests.support.strategies import parameters

MANY = (1 << 31) + 33


@pytest.fixture(scope="module")
def memory():
    """2^31 + 33 bfloat16 elements: 0.5 everywhere, landmarks on both sides of 2^31 and at the end."""
    x = torch.full((MANY,), 0.5, dtype=torch.bfloat16)
    for where, value in LANDMARKS.items():
        x[where] = value
    return x


LANDMARKS = {0: 3.0, (1 << 31) - 1: -7.0, 1 << 31: 11.0, MANY - 1: -13.0, MANY - 2: 0.0, (1 << 31) + 5: 0.0}


def exact(p, scale=1.0):
    rest = np.longdouble(MANY - len(LANDMARKS)) * np.longdouble(0.5) ** p
    return scale * (rest + sum(np.longdouble(abs(v)) ** p for v in LANDMARKS.values())) ** (
        1 / np.longdouble(p)
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
class TestHuge:
    def test_one_tensor(self, memory):
        stats = gradkern.measure(parameters([memory]), count_zeros=True)
        ref.assert_norm(stats.norm[0].item(), exact(2), wide=False, ulp=ref.NORM_ULP)
        ref.assert_norm(stats.total_norm.item(), exact(2), wide=False, ulp=ref.TOTAL_ULP)
        assert stats.max_abs[0].item() == 13.0
        assert stats.zeros[0].item() == 2
        assert stats.nonfinite[0].item() == 0
        assert stats.numel == (MANY,)
        ref.assert_norm(gradkern.get_total_norm([memory], 1.0).item(), exact(1), wide=False, ulp=ref.NORM_ULP)
        assert gradkern.get_total_norm([memory], 0.0).item() == float(np.float32(MANY - 2))

    def test_a_list(self, memory):
        parts = list(memory.split(1 << 30))
        assert sum(p.numel() for p in parts) == MANY
        assert len(parts) == 3
        stats = gradkern.measure(parameters(parts))
        ref.assert_norm(stats.total_norm.item(), exact(2), wide=False, ulp=ref.TOTAL_ULP)
        assert stats.max_abs.tolist() == [3.0, 7.0, 13.0]
        many = list(memory.split((1 << 22) + 1))
        ref.assert_norm(gradkern.get_total_norm(many).item(), exact(2), wide=False, ulp=ref.TOTAL_ULP)

    def test_non_finite_beyond_the_boundary(self, memory):
        memory[MANY - 4] = math.nan
        try:
            assert math.isnan(gradkern.get_total_norm([memory]).item())
            with pytest.raises(RuntimeError, match=rf"tensors\[0\] \(1 of {MANY} elements\)"):
                gradkern.get_total_norm([memory], error_if_nonfinite=True)
        finally:
            memory[MANY - 4] = 0.5

    def test_clipping(self, memory):
        """Last: it writes. Halved exactly, so that the norm after it is known exactly too."""
        before = gradkern.get_total_norm([memory])
        gradkern.clip_grads_with_norm_(parameters([memory]), 0.5, torch.tensor(1 - 1e-6, dtype=torch.float64))
        for where, value in LANDMARKS.items():
            assert memory[where].item() == value / 2
        ref.assert_norm(
            gradkern.get_total_norm([memory]).item(),
            exact(2, np.longdouble(0.5)),
            wide=False,
            ulp=ref.NORM_ULP,
        )
        gradkern.clip_grad_value_(parameters([memory]), 3.0)
        assert memory[MANY - 1].item() == -3.0
        assert memory[1 << 31].item() == 3.0
        assert before.item() > 0
