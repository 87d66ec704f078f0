"""Checks that have to hold on every device: run on the CPU, and on a GPU by tests/cuda.

Every check takes the device it runs on; references are computed on the host, in long double.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

import gradkern
from tests.kernels.test_adversarial_sums import SUMS
from tests.support import reference as ref

__all__ = ["SUMS"]


def parameter(grad: Tensor) -> nn.Parameter:
    p = nn.Parameter(torch.zeros_like(grad))
    p.grad = grad
    return p


def host(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().cpu() for t in tensors]


def mixed_gradients(device: str, dtypes: tuple[torch.dtype, ...] = ref.DTYPES) -> list[Tensor]:
    """Odd sizes, one per dtype, and an offset that is no multiple of 16 bytes."""
    made = []
    for i, dtype in enumerate(dtypes):
        memory = torch.randn(4099 + 1003 * i, dtype=torch.complex128 if dtype.is_complex else torch.float64)
        made.append(memory.to(dtype).to(device)[1:])
    return made


def check_adversarial_sum(device: str, name: str, dtype: torch.dtype, p: float) -> None:
    x = SUMS[name]().to(dtype)
    got = gradkern.get_total_norm([x.to(device)], p).item()
    ref.assert_norm(got, ref.total_norm([x], p), wide=ref.is_wide([x]), ulp=ref.NORM_ULP)


def check_adversarial_list(device: str, name: str, dtype: torch.dtype) -> None:
    x = SUMS[name]().to(dtype)
    got = gradkern.get_total_norm(list(x.to(device).split(997))).item()
    ref.assert_norm(got, ref.total_norm([x]), wide=ref.is_wide([x]), ulp=ref.TOTAL_ULP)


def check_inv_scale(device: str, p: float, factor: float) -> None:
    """The factor as a number and as a tensor on the device; a count of non-zeros does not scale."""
    grads = mixed_gradients(device, (torch.float32, torch.bfloat16))
    params = [parameter(g) for g in grads]
    before = [ref.bits(g) for g in host(grads)]
    here = np.longdouble(factor)
    for given in (factor, torch.tensor(factor, dtype=torch.float64, device=device)):
        stats = gradkern.measure(params, norm_type=p, inv_scale=given).cpu()
        for row, grad in enumerate(host(grads)):
            exact = ref.total_norm([grad], p) * (1 if p == 0 else here)
            ref.assert_norm(stats.norm[row].item(), exact, wide=False, ulp=ref.NORM_ULP)
            l2, largest = ref.total_norm([grad]) * here, ref.total_norm([grad], math.inf) * here
            ref.assert_norm(stats.l2_norm[row].item(), l2, wide=False, ulp=ref.NORM_ULP)
            ref.assert_norm(stats.max_abs[row].item(), largest, wide=False, ulp=ref.NORM_ULP)
        exact = ref.total_norm(host(grads), p) * (1 if p == 0 else here)
        ref.assert_norm(stats.total_norm.item(), exact, wide=False, ulp=ref.TOTAL_ULP)
    assert [ref.bits(g) for g in host(grads)] == before


def check_scaling_by_a_tensor(device: str, dtype: torch.dtype, factor: float) -> None:
    """Scaling by a loss scale or a fold's coefficient: one rounding, whatever the type."""
    from gradkern.kernels.scale import scale_

    grads = mixed_gradients(device, (dtype, dtype))
    before = host([g.clone() for g in grads])
    scale_([*grads, None], [*grads, None], torch.tensor(factor, dtype=torch.float64, device=device))
    for new, old in zip(host(grads), before):
        ref.assert_scaled(new, old, factor)


def check_gradscaler(device: str, dtype: torch.dtype) -> None:
    """Unscaled and clipped in one pass, skipped by the scaler where a gradient is not finite."""
    torch.manual_seed(0)
    model = nn.Linear(64, 33).to(device, dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = GradScaler(device, init_scale=1024.0)
    clipper = gradkern.GradClipper(model, 0.25)
    for poison in (False, True, False):
        x = torch.randn(8, 64, device=device, dtype=dtype)
        scaler.scale(model(x).float().square().mean()).backward()
        if poison:
            model.bias.grad[3] = math.inf
        inverse, weights = 1 / scaler.get_scale(), model.weight.detach().clone()
        before = host([p.grad.clone() for p in model.parameters()])
        stats = clipper.clip_(scaler=scaler, optimizer=optimizer)
        if not poison:
            exact = ref.total_norm(before) * np.longdouble(inverse)
            ref.assert_norm(stats.total_norm.item(), exact, wide=ref.is_wide(before), ulp=ref.TOTAL_ULP)
            coef = ref.coefficient(0.25, stats.total_norm) * inverse
            assert coef < inverse, "the case is one that clips"
            for p, old in zip(model.parameters(), before):
                ref.assert_scaled(p.grad.cpu(), old, coef)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert torch.equal(model.weight, weights) is poison
    assert scaler.get_scale() == 512.0


def check_fold(device: str, kind: type[torch.optim.Optimizer]) -> None:
    """The coefficient applied by the fused optimizer: the same training as with a clip beforehand."""
    torch.manual_seed(0)
    folded = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 3)).to(device)
    clipped = copy.deepcopy(folded)
    optimizer, other = (kind(m.parameters(), lr=1e-2, fused=True) for m in (folded, clipped))
    fold = gradkern.GradClipper(folded, 0.5, optimizer=optimizer, fold=True)
    clip = gradkern.GradClipper(clipped, 0.5)
    for step in range(4):
        x = torch.randn(8, 16, device=device)
        for model in (folded, clipped):
            model(x).square().sum().backward()
        before = [p.grad.clone() for p in folded.parameters()]
        a, b = fold.clip_(), clip.clip_()
        assert all(torch.equal(p.grad, g) for p, g in zip(folded.parameters(), before))
        # From the second step on the parameters differ in last bits: a quotient is not a product.
        assert math.isclose(a.clip_coef, b.clip_coef, rel_tol=1e-5 if step else 0) and a.clip_coef < 1
        for o in (optimizer, other):
            o.step()
            o.zero_grad()
        assert not hasattr(optimizer, "grad_scale")
        for p, q in zip(folded.parameters(), clipped.parameters()):
            torch.testing.assert_close(p, q)


def check_by_layer(device: str, p: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.Sequential(nn.Linear(30, 20), nn.LayerNorm(20))).to(device)
    model(torch.randn(7, 40, device=device)).square().sum().backward()
    for depth, wanted in ((None, ["0", "1.0", "1.1"]), (1, ["0", "1"]), (0, ["(root)"])):
        layers = gradkern.measure(model, norm_type=p).by_layer(depth)
        assert list(layers.names) == wanted
        assert layers.norm.device.type == device
        for row, name in enumerate(wanted):
            grads = host(
                [q.grad for n, q in model.named_parameters() if name == "(root)" or n.startswith(name)]
            )
            exact = ref.total_norm(grads, p)
            ref.assert_norm(layers.norm[row].item(), exact, wide=False, ulp=ref.TOTAL_ULP)
            assert layers.max_abs[row].item() == float(ref.total_norm(grads, math.inf))
            assert layers.numel[row] == sum(g.numel() for g in grads)


def check_monitor(
    device: str, folder: Path, guard: Callable[[], contextlib.AbstractContextManager[object]]
) -> None:
    """What is recorded is what was measured; `record` runs under `guard`."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 1)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    clipper = gradkern.GradClipper(model, 0.3, on_nonfinite="skip")
    kept, losses = [], []
    with gradkern.GradMonitor(model, optimizer, folder) as monitor:
        for step in range(50):
            loss = model(torch.randn(16, 12, device=device) * (1 + step)).square().mean()
            loss.backward()
            if step == 20:
                model[0].weight.grad[0, 0] = math.nan
            stats = clipper.clip_()
            with guard():
                monitor.record(stats, loss=loss)
            kept.append(stats)
            losses.append(loss.item())
            if step != 20:
                optimizer.step()
            optimizer.zero_grad()
        history = monitor.history()
    assert history.steps.tolist() == list(range(1, 51))
    assert history.loss.tolist() == losses
    for row, stats in enumerate(kept):
        np.testing.assert_array_equal(history.norm[row], stats.norm.cpu().numpy())
        np.testing.assert_array_equal(history.total_norm[row], stats.total_norm.cpu().numpy())
        np.testing.assert_array_equal(history.clip_coef[row], stats.clip_coef.cpu().numpy())


def recorded(device: str, call: Callable[[], list[Tensor]]) -> tuple[Callable[[], None], list[Tensor]]:
    """(replay, results) of `call`: a CUDA graph on a GPU, the call once more elsewhere."""
    if device != "cuda":
        results = call()

        def again() -> None:
            for old, new in zip(results, call()):
                old.copy_(new)

        return again, results
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()  # loads the kernels
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph.replay, results


def check_clipper_on_replay(device: str, policy: str) -> None:
    """A recorded clip with statistics, its gradients replaced in place between replays."""
    grads = mixed_gradients(device)
    fresh = [g.clone() for g in grads]
    params = [parameter(g) for g in grads]
    clipper = gradkern.GradClipper(params, 1.0, on_nonfinite=policy)

    def values(stats: gradkern.GradStats) -> list[Tensor]:
        found = [stats.norm, stats.max_abs, stats.nonfinite, stats.total_norm, stats.clip_coef]
        return found if stats.skip_step is None else [*found, stats.skip_step]

    replay, results = recorded(device, lambda: values(clipper.clip_()))
    for scale, poison in ((1.0, False), (1e-6, False), (1.0, True), (7.0, False), (0.0, False)):
        for grad, f in zip(grads, fresh):
            grad.copy_(f * scale)
        if poison:
            grads[1][17] = math.inf
        eager = [parameter(g.clone()) for g in grads]
        want = values(gradkern.GradClipper(eager, 1.0, on_nonfinite=policy).clip_())
        replay()
        assert [ref.bits(t) for t in host(results)] == [ref.bits(t) for t in host(want)]
        now = host([p.grad for p in params])
        assert [ref.bits(t) for t in now] == [ref.bits(p.grad.cpu()) for p in eager]


def check_repeated_parameter_in_an_error(device: str) -> None:
    """A parameter that is listed twice is named once."""
    import pytest

    p = parameter(torch.ones(9, device=device))
    p.grad[4] = math.nan
    clipper = gradkern.GradClipper([("a", p), ("b", p)], 1.0, on_nonfinite="raise")
    with pytest.raises(
        RuntimeError, match=r"Non-finite: params\[0\] \('a'\) \(1 of 9 elements\)\. Gradients"
    ):
        clipper.clip_()
