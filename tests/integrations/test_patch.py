"""`patch_torch` and `unpatch_torch`."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.utils import clip_grad

import gradkern
from gradkern.integrations import bridge
from tests.support.strategies import parameters

PUBLIC = ("clip_grad_norm_", "clip_grad_value_", "get_total_norm", "clip_grads_with_norm_")
PLACES = [(torch.nn.utils, n) for n in PUBLIC] + [
    (clip_grad, n)
    for n in ("clip_grad_norm_", "clip_grad_value_", "_get_total_norm", "_clip_grads_with_norm_")
]
ORIGINALS = {(m.__name__, n): getattr(m, n) for m, n in PLACES}


def patched():
    return [getattr(m, n).__module__.startswith("gradkern") for m, n in PLACES]


@pytest.fixture(autouse=True)
def _unpatched():
    assert not any(patched())
    yield
    gradkern.unpatch_torch()
    assert all(getattr(m, n) is ORIGINALS[m.__name__, n] for m, n in PLACES)


def test_patch_and_unpatch():
    gradkern.patch_torch()
    assert all(patched())
    gradkern.patch_torch()
    assert all(patched())
    gradkern.unpatch_torch()
    assert not any(patched())
    gradkern.unpatch_torch()


def test_the_patched_function_is_the_accurate_one():
    tiny = torch.full((100,), 1e-25)
    assert torch.nn.utils.get_total_norm([tiny]).item() == 0.0
    with gradkern.patched_torch():
        assert torch.nn.utils.get_total_norm([tiny]).item() == pytest.approx(1e-24)
        assert torch.nn.utils.clip_grad_norm_(parameters([tiny]), 1.0).item() == pytest.approx(1e-24)
    assert torch.nn.utils.get_total_norm([tiny]).item() == 0.0


def test_the_context_undoes_itself_when_something_raises():
    def fail():
        assert all(patched())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), gradkern.patched_torch():
        fail()
    assert not any(patched())


def test_nested_contexts_leave_the_outer_patch():
    with gradkern.patched_torch():
        with gradkern.patched_torch():
            pass
        assert all(patched())
    assert not any(patched())
    gradkern.patch_torch()
    with gradkern.patched_torch():
        pass
    assert all(patched())


def test_fallback_does_not_come_back_here():
    """Without a kernel, torch's own functions are called, also while they are patched."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with gradkern.patched_torch(), FakeTensorMode():
        params = parameters([torch.ones(3)])
        assert torch.nn.utils.clip_grad_norm_(params, 1.0).shape == ()


class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
    """Operations go through Python, so that no kernel takes the list."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def test_the_fallback_is_torch_s_own_while_torch_is_patched():
    tiny = torch.full((100,), 1e-25)  # torch's norm of it is 0
    with gradkern.patched_torch(), Recorder():
        assert torch.nn.utils.get_total_norm([tiny]).item() == 0.0
        assert torch.nn.utils.clip_grad_norm_(parameters([tiny]), 1.0).item() == 0.0


def test_param_groups_through_a_patched_torch(tmp_path):
    """A form that torch does not have; also if a monitor is made for parameters without one."""
    params = parameters([torch.full((4,), 3.0), torch.full((4,), 6.0)])
    groups = [{"params": iter(params[:1]), "max_norm": 1.0}, {"params": params[1:]}]
    made = []

    def make(found):
        made.append(gradkern.GradMonitor(found, run_dir=tmp_path / "run"))
        return made[-1]

    with gradkern.patched_torch():
        bridge.on_unknown(make)
        assert torch.nn.utils.clip_grad_norm_(groups, 2.0).item() == pytest.approx(math.sqrt(180))
    (monitor,) = made
    monitor.record(loss=1.0)
    monitor.close()
    assert [p.grad.norm().item() for p in params] == pytest.approx([1.0, 2.0])
    with gradkern.History.open(tmp_path / "run") as history:
        assert history.total_norm.tolist() == pytest.approx([math.sqrt(180)])


def test_a_warning_names_the_function_that_was_called(tmp_path):
    model = torch.nn.Linear(2, 2)
    said = pytest.warns(gradkern.GradkernWarning, match=r"^\[clip_grad_norm_\] no parameter has")
    monitor = gradkern.GradMonitor(model, run_dir=tmp_path / "run")
    with monitor, gradkern.patched_torch(monitor), said:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)


def test_which_names_imported_early_are_reached():
    """torch's clip_grad_norm_ looks up the functions that it calls in its module."""
    early_clip = ORIGINALS["torch.nn.utils", "clip_grad_norm_"]
    early_norm = ORIGINALS["torch.nn.utils", "get_total_norm"]
    tiny = torch.full((100,), 1e-25)
    with gradkern.patched_torch():
        assert early_clip(parameters([tiny]), 1.0).item() == pytest.approx(1e-24)
        assert early_norm([tiny]).item() == 0.0
        grad = torch.tensor([3.0, 4.0])
        ORIGINALS["torch.nn.utils", "clip_grads_with_norm_"](parameters([grad]), 100.0, torch.tensor(5.0))
        ORIGINALS["torch.nn.utils", "clip_grad_value_"](parameters([grad]), 100.0)
        assert grad._version == 3  # torch always writes; gradkern writes only if there is something to clip


def test_a_loop_that_accelerate_owns_is_reached():
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    accelerator = accelerate.Accelerator(cpu=True)
    (param,) = parameters([torch.full((100,), 1e20)])
    with gradkern.patched_torch():
        total = accelerator.clip_grad_norm_([param], 1.0)
    assert total.item() == pytest.approx(1e21)
    assert param.grad.norm().item() == pytest.approx(1.0)
