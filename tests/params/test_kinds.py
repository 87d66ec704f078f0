"""All dtypes of torch, containers that are not plain dicts, and script modules."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import gradkern
from gradkern import GradMonitor
from gradkern._util.names import common_prefix, layer_of
from gradkern.monitor.models.layouts import kind_of

DTYPES = sorted({d for d in vars(torch).values() if isinstance(d, torch.dtype)}, key=str)


def tensor_of(dtype):
    name = str(dtype).removeprefix("torch.")
    if name in ("qint32", "qint8", "quint8"):
        return torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 10, dtype)
    if name in ("quint4x2", "quint2x4"):
        return torch._empty_affine_quantized((4, 4), scale=0.1, zero_point=0, dtype=dtype)
    try:
        return torch.ones(4, 4).to(dtype)
    except (RuntimeError, NotImplementedError):
        return torch.empty(4, 4, dtype=dtype)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_frozen_parameter_of_any_type(tmp_path, dtype):
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    model.base = nn.Parameter(tensor_of(dtype), requires_grad=False)
    optimizer = torch.optim.SGD([model.weight, model.bias], lr=0.1)
    clipper = gradkern.GradClipper(model, 1.0)
    options = {"update_every": 1, "histogram_every": 1}
    with GradMonitor(model, optimizer, tmp_path, **options) as monitor:
        for _ in range(3):
            before = model.weight.detach().clone()
            model(torch.ones(2, 4)).square().sum().backward()
            stats = clipper.clip_()
            assert str(stats.by_layer()) and stats.has_grad == (True, True, False)
            monitor.record(stats)
            optimizer.step()
            optimizer.zero_grad()
        history = monitor.history()
        assert monitor.lost == 0 and history.steps.tolist() == [1, 2, 3]
        changed = (model.weight.detach() - before).norm() / before.norm()
        np.testing.assert_allclose(history.update_ratio[-1, 0], changed.item(), rtol=1e-4)


@pytest.mark.parametrize("how", ["script", "trace"])
def test_script_modules(tmp_path, how):
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = torch.jit.script(plain) if how == "script" else torch.jit.trace(plain, torch.ones(2, 4))
    clipper = gradkern.GradClipper(model, 0.5)
    with GradMonitor(model, None, tmp_path) as monitor:
        for _ in range(2):
            model.zero_grad()
            model(torch.ones(2, 4)).sum().backward()
            total = torch.cat([p.grad.double().flatten() for p in model.parameters()]).norm().item()
            stats = clipper.clip_()
            assert stats.total_norm.item() == pytest.approx(total, rel=1e-6)
            monitor.record(stats)
        assert monitor.history().names == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert [kind_of(m) for m in model.children()] == ["Linear", "ReLU", "Linear"]


class Shelf(dict):
    """Like DeepSpeed's: a dict with a new view at each access."""

    def items(self):
        return [("".join(key), value) for key, value in super().items()]


def test_a_container_of_its_own_kind():
    model = nn.Linear(3, 2)
    model._parameters = Shelf(model._parameters)
    clipper = gradkern.GradClipper(model, 1.0)
    names = clipper.names
    model(torch.ones(1, 3)).sum().backward()
    assert clipper.clip_().has_grad == (True, True) and clipper.names is names
    model.weight = nn.Parameter(torch.zeros(2, 3))
    assert clipper.clip_().has_grad == (False, True) and clipper.names is not names


def test_a_parametrized_module_is_one_layer():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    parametrizations.weight_norm(model[0])
    parametrizations.spectral_norm(model[1])
    model(torch.ones(2, 4)).sum().backward()
    stats = gradkern.measure(model)
    assert "0.parametrizations.weight.original0" in stats.names
    assert stats.by_layer().names == ("0", "1")
    assert [kind_of(m) for m in model] == ["Linear", "Linear"]


def test_layers_and_common_prefixes():
    names = ["0.parametrizations.weight.original0", "parametrizations.w.0.a", "a.parametrizations", "b"]
    assert [layer_of(name) for name in names] == ["0", "(root)", "a", "(root)"]
    deep = ["base_model.model.layers.0.q.weight", "base_model.model.layers.1.q.weight"]
    assert common_prefix(deep) == "base_model.model."
    assert common_prefix([*deep, "base_model.model.embed.weight"]) == "base_model.model."
    for names in ([], ["weight"], ["lin.weight", "lin.bias"], ["0.weight", "1.weight"]):
        assert common_prefix(names) == ""


def test_recording_under_another_default_device(tmp_path):
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.device("meta"):
        options = {"update_every": 1, "histogram_every": 1}
        with GradMonitor(model, optimizer, tmp_path, **options) as monitor:
            for _ in range(4):
                model(torch.ones(2, 4, device="cpu")).square().sum().backward()
                monitor.record()
                optimizer.step()
                optimizer.zero_grad()
            assert monitor.lost == 0 and monitor.history().update_steps.tolist() == [1, 2, 3, 4]
