"""Streams, graphs, concurrency, launches and memory on a GPU."""

from __future__ import annotations

import math

import pytest
import torch

import gradkern
from tests.cuda.cuda_cases import assert_norm, bits, parameter, random, reference_norm


def some_parameters(seed: int = 0, count: int = 40) -> list[torch.nn.Parameter]:
    torch.manual_seed(seed)
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    return [parameter(random(1 + (i * 997) % 20011, dtypes[i % 3])) for i in range(count)]


def clones(params: list[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    return [parameter(p.grad.clone()) for p in params]


def test_no_synchronisation() -> None:
    bucket, matrix = random(5000, torch.float32), random(60, torch.float32).reshape(6, 10)
    views = [bucket[:1000], bucket[1000:], matrix[:, ::2]]  # DDP's buckets; a gradient that no kernel writes
    params = [*some_parameters(), *map(parameter, views)]
    clipper = gradkern.GradClipper(params, 1.0, on_nonfinite="skip")
    for _ in range(2):  # once for the allocator, once for the test
        torch.cuda.set_sync_debug_mode("error")
        try:
            gradkern.clip_grad_norm_(params, 1.0)
            gradkern.get_total_norm([p.grad for p in params], 1.0)
            gradkern.clip_grad_value_(params, 0.1)
            gradkern.measure(params, count_zeros=True)
            clipper.clip_()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_current_stream_is_respected() -> None:
    params = some_parameters()
    want = [p.grad.clone() for p in params]
    norm = reference_norm(want, 2.0)
    for p in params:
        p.grad.zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # the gradients arrive late, on this stream
        for p, w in zip(params, want):
            p.grad.copy_(w)
        total = gradkern.clip_grad_norm_(params, 1.0)
        again = gradkern.get_total_norm([p.grad for p in params])
    stream.synchronize()
    assert_norm(total, norm, total=True)
    assert abs(float(again) - 1) < 1e-3


def test_two_streams_at_once() -> None:
    lists = [some_parameters(seed) for seed in range(2)]
    streams = [torch.cuda.Stream() for _ in lists]
    want = [float(gradkern.get_total_norm([p.grad for p in params])) for params in lists]
    torch.cuda.synchronize()
    got: list[list[torch.Tensor]] = [[], []]
    for _ in range(200):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                got[i].append(gradkern.get_total_norm([p.grad for p in lists[i]]))
    torch.cuda.synchronize()
    for i in range(2):
        assert torch.stack(got[i]).unique().tolist() == [want[i]]


def test_results_are_deterministic() -> None:
    params = some_parameters(count=100)
    runs = [gradkern.measure(params, norm_type=1.0) for _ in range(20)]
    for stats in runs[1:]:
        assert torch.equal(stats.norm, runs[0].norm)
        assert torch.equal(stats.l2_norm, runs[0].l2_norm)
        assert torch.equal(stats.total_norm, runs[0].total_norm)
    clipped = []
    for _ in range(3):
        copies = clones(params)
        gradkern.clip_grad_norm_(copies, 1.0)
        clipped.append(torch.cat([bits(p.grad) for p in copies]))
    assert torch.equal(clipped[0], clipped[1])
    assert torch.equal(clipped[0], clipped[2])


def capture(params: list[torch.nn.Parameter]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        gradkern.get_total_norm([p.grad for p in params])  # loads the kernels
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total = gradkern.clip_grad_norm_(params, 1.0)
    return graph, total


def test_graph_is_right_on_replay_with_changed_values() -> None:
    params = some_parameters()
    fresh = [p.grad.clone() for p in params]
    graph, total = capture(params)
    for scale in (1.0, 1e-3, 1e3, math.nan, 7.0, 0.0):
        for p, f in zip(params, fresh):
            p.grad.copy_(f * scale)
        eager = clones(params)
        want = gradkern.clip_grad_norm_(eager, 1.0)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(bits(total), bits(want))
        assert all(torch.equal(bits(p.grad), bits(e.grad)) for p, e in zip(params, eager))


def test_two_graphs_replayed_at_once() -> None:
    lists = [some_parameters(seed) for seed in range(2)]
    captured = [capture(params) for params in lists]
    fresh = [[p.grad.clone() for p in params] for params in lists]
    want = [float(gradkern.get_total_norm(f)) for f in fresh]
    streams = [torch.cuda.Stream() for _ in lists]
    totals: list[list[torch.Tensor]] = [[], []]
    torch.cuda.synchronize()
    for _ in range(100):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                torch._foreach_copy_([p.grad for p in lists[i]], fresh[i])
                captured[i][0].replay()
                totals[i].append(captured[i][1].clone())
    torch.cuda.synchronize()
    for i in range(2):
        assert torch.stack(totals[i]).unique().tolist() == [want[i]]


def test_capture_refuses_what_needs_the_host() -> None:
    params = some_parameters()
    gradkern.clip_grad_norm_(params, 1.0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with (
        pytest.raises(
            RuntimeError, match="cannot raise for a non-finite norm while a CUDA graph is captured"
        ),
        torch.cuda.graph(graph),
    ):
        gradkern.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    torch.cuda.synchronize()
    gradkern.clip_grad_norm_(params, 1.0)  # and nothing is broken afterwards


def test_the_first_call_of_a_process_can_be_captured(run_python) -> None:
    """The runtime and the kernels are loaded by then."""
    code = """
import torch, gradkern
param = torch.nn.Parameter(torch.zeros(10_000, device="cuda"))
param.grad = torch.full_like(param, 2.0)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    total = gradkern.clip_grad_norm_([param], 1.0)
graph.replay()
print(float(total), round(float(param.grad.norm()), 5))
"""
    done = run_python(code)
    assert done.stdout == "200.0 1.0\n", done.stderr


def kernels_of(call: object) -> list[str]:
    call()  # type: ignore[operator]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()  # type: ignore[operator]
        torch.cuda.synchronize()
    return [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]


@pytest.mark.parametrize("count", [1, 2000, 20000])
def test_two_launches_whatever_the_list(count: int) -> None:
    params = [parameter(random(100, torch.bfloat16)) for _ in range(count)]
    names = kernels_of(lambda: gradkern.clip_grad_norm_(params, 1.0))
    assert len(names) == 2, names


def test_fresh_gradients_cost_one_copy() -> None:
    params = [parameter(random(100, torch.bfloat16)) for _ in range(2000)]
    kept = []

    def call() -> None:
        for p in params:
            kept.append(p.grad)
            p.grad = torch.empty_like(p)
        gradkern.clip_grad_norm_(params, 1.0)

    names = kernels_of(call)
    assert len(names) == 3, names


def test_memory_does_not_grow() -> None:
    params = some_parameters()
    gradkern.clip_grad_norm_(params, 1.0)
    torch.cuda.synchronize()
    before, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for _ in range(50):
        gradkern.clip_grad_norm_(params, 1.0)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.memory_reserved() == reserved


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_five_billion_elements(dtype: torch.dtype) -> None:
    numel = 5_000_000_011
    needed = numel * dtype.itemsize
    if torch.cuda.mem_get_info()[0] < needed * 1.1:
        pytest.skip("needs more device memory")
    grad = torch.empty(numel, dtype=dtype, device="cuda").fill_(0.5)
    grad[-1] = grad[2**31] = grad[2**32 + 1] = 65536.0
    want = math.sqrt(0.25 * (numel - 3) + 3 * 65536.0**2)
    # The parameter is the gradient's own memory: two of these may not fit.
    p = torch.nn.Parameter(grad)
    p.grad = grad.detach()
    stats = gradkern.measure([p, parameter(random(7, dtype))])
    assert_norm(stats.norm[0], want)
    gradkern.clip_grads_with_norm_([p], 1.0, torch.tensor(2.0 - 1e-6, dtype=torch.float64, device="cuda"))
    assert grad[-1] == 32768.0
    assert grad[2**31] == 32768.0
    assert grad[0] == 0.25
    assert grad[-2] == 0.25
    assert bool((grad[numel // 2 : numel // 2 + 1000] == 0.25).all())


def test_training_step_is_the_same_as_with_torch() -> None:
    losses = []
    for clip in (gradkern.clip_grad_norm_, torch.nn.utils.clip_grad_norm_):
        torch.manual_seed(3)
        model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 1)).cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x, y = torch.randn(128, 64, device="cuda"), torch.randn(128, 1, device="cuda")
        for _ in range(20):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(x), y)
            loss.backward()
            clip(model.parameters(), 0.5)
            optimizer.step()
        losses.append(float(loss))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
