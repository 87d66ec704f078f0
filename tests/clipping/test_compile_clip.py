"""Clipping inside torch.compile(fullgraph=True): the deferred check; and clipper and monitor beside it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

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


def test_parameters_without_gradient_are_counted_in_the_message():
    def clip(ps: list[torch.Tensor]) -> torch.Tensor:
        return gradkern.clip_grad_norm_(ps, 1.0, error_if_nonfinite=True)

    params = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    params[2].grad = torch.tensor([3.0, 4.0])
    compiled = torch.compile(clip, fullgraph=True, backend="aot_eager")
    assert float(compiled(params)) == 5.0
    params[2].grad = torch.tensor([math.inf, 1.0])
    with pytest.raises(RuntimeError, match=r"non-finite.*parameters\[2\] \(1 of 2 elements\)"):
        compiled(params)


def test_sparse_gradients_are_clipped_outside_the_graph():
    dense, sparse = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(4))

    def fill() -> None:
        dense.grad = torch.tensor([3.0, 4.0])
        sparse.grad = torch.tensor([0.0, 12.0, 0.0, 0.0]).to_sparse()

    @torch.compile(backend="aot_eager")
    def clip() -> torch.Tensor:
        gradkern.clip_grad_value_([dense, sparse], 100.0)
        return gradkern.clip_grad_norm_([dense, sparse], 6.5)

    fill()
    assert clip().item() == 13.0
    torch.testing.assert_close(dense.grad, torch.tensor([1.5, 2.0]))
    torch.testing.assert_close(sparse.grad.to_dense(), torch.tensor([0.0, 6.0, 0.0, 0.0]))
    reason = "sparse Tensor|leaves_graph"  # torch 2.10 names our function
    with pytest.raises(torch._dynamo.exc.Unsupported, match=reason):
        torch.compile(lambda: gradkern.clip_grad_norm_([sparse], 1.0), backend="eager", fullgraph=True)()


def test_training_steps_compile_once_with_clipper_and_monitor_beside(tmp_path):
    """The model and a clip are compiled; the clipper and the monitor run eagerly beside them."""
    torch.manual_seed(0)
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    eager = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    model = torch.compile(eager, backend=counter)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    clipper = gradkern.GradClipper(model, 0.1)
    clip = torch.compile(
        lambda: gradkern.clip_grad_norm_(list(eager.parameters()), 0.05), fullgraph=True, backend=counter
    )
    x = torch.randn(16, 4)
    compiled_frames = []
    with gradkern.GradMonitor(model, optimizer, tmp_path / "run") as monitor:
        for _ in range(5):
            optimizer.zero_grad(set_to_none=False)
            loss = model(x).square().mean()
            loss.backward()
            stats = clipper.clip_()
            again = clip()
            assert float(again) == pytest.approx(min(0.1, float(stats.total_norm)), rel=1e-4)
            monitor.record(stats, loss=loss)
            optimizer.step()
            compiled_frames.append(counter.frame_count)
        history = monitor.history()
    assert compiled_frames == [compiled_frames[0]] * 5  # no recompilation from step to step
    assert list(history.names) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert history.steps.tolist() == [1, 2, 3, 4, 5]
    assert history.loss[-1] < history.loss[0]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.integration)])
def test_a_negative_limit_that_only_the_graph_sees_changes_nothing(backend):
    param = torch.nn.Parameter(torch.zeros(2))
    param.grad = torch.tensor([3.0, 4.0])
    clip = torch.compile(lambda limit: gradkern.clip_grad_norm_([param], limit), backend=backend)
    clip(torch.tensor(-1.0))
    assert param.grad.tolist() == [3.0, 4.0]
