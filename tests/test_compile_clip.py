"""Clipping inside torch.compile(fullgraph=True): the deferred check."""

from __future__ import annotations

import math

import pytest
import torch

import gradkern


def test_the_check_is_made_when_the_graph_runs_and_names_the_gradient():
    def clip(p: torch.Tensor) -> torch.Tensor:
        return gradkern.clip_grad_norm_([p], 1.0, error_if_nonfinite=True)

    compiled = torch.compile(clip, fullgraph=True, backend="aot_eager")
    p = torch.nn.Parameter(torch.zeros(3, 4))
    p.grad = torch.full((3, 4), 2.0)
    assert float(compiled(p)) == pytest.approx(math.sqrt(48), rel=3e-7)
    assert float(p.grad.norm()) == pytest.approx(1.0, rel=1e-5)
    p.grad = torch.full((3, 4), math.nan)
    with pytest.raises(RuntimeError, match=r"non-finite.*parameters\[0\] \(12 of 12 elements\)"):
        compiled(p)
