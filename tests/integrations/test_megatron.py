"""megatron.core's clipping with gradkern's functions. It names the device "cuda"; here that is the CPU."""

from __future__ import annotations

import warnings

import pytest
import torch

from gradkern import compat
from gradkern.integrations.megatron import monitored, patch_megatron, unpatch_megatron
from tests.integrations.installed import framework

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    framework("megatron.core")
    clip_grads = framework("megatron.core.optimizer.clip_grads")


class _OnCpu:
    """The module torch, which makes zeros on the CPU whatever device is named."""

    def __getattr__(self, name):
        return getattr(torch, name)

    @staticmethod
    def zeros(*size, device=None, **more):
        return torch.zeros(*size, **more)


@pytest.fixture
def group(monkeypatch):
    monkeypatch.setattr(clip_grads, "torch", _OnCpu())
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()
    unpatch_megatron()


def test_norm_and_clip(group):
    replaced = patch_megatron()
    assert "megatron.core.optimizer.clip_grads.l2_norm_impl" in replaced
    assert clip_grads.l2_norm_impl is compat.multi_tensor_l2norm
    generator = torch.Generator().manual_seed(0)
    grads = [
        torch.randn(n, generator=generator).to(d) for n, d in ((5000, torch.float32), (33, torch.bfloat16))
    ]
    expected = torch.cat([g.double() for g in grads]).norm().item()
    total = clip_grads.get_grad_norm_fp32(grads, grad_stats_parallel_group=group)
    assert total == pytest.approx(expected, rel=1e-6)
    params = [torch.nn.Parameter(torch.zeros_like(g)) for g in grads]
    for param, grad in zip(params, grads):
        param.decoupled_grad = grad.clone()
    clip_grads.clip_grad_by_total_norm_fp32(params, 1.0, total, use_decoupled_grad=True)
    for param, grad in zip(params, grads):
        wanted = (grad.double() / (total + 1e-6)).to(grad.dtype)
        torch.testing.assert_close(param.decoupled_grad, wanted)


def test_unpatch(group):
    original = clip_grads.l2_norm_impl
    patch_megatron()
    patch_megatron()
    unpatch_megatron()
    assert clip_grads.l2_norm_impl is original


def test_another_version_of_megatron(group, monkeypatch):
    monkeypatch.delattr(clip_grads, "l2_norm_impl")
    before = clip_grads.multi_tensor_applier
    with pytest.raises(AttributeError, match="l2_norm_impl, which this version"):
        patch_megatron()
    assert clip_grads.multi_tensor_applier is before


def test_optimizers_of_another_kind_are_refused(group, tmp_path):
    model = torch.nn.Linear(2, 1)
    with (
        pytest.raises(TypeError, match=r"get_megatron_optimizer returns .* got SGD"),
        monitored(torch.optim.SGD(model.parameters(), lr=0.1), model, tmp_path / "run"),
    ):
        pass
    assert not (tmp_path / "run").exists()
