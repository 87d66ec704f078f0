"""`measure` and `GradStats`: rows, names, layers."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import gradkern
from gradkern._util.names import canonical_names, layer_of
from tests.support import reference as ref
from tests.support.strategies import NORM_TYPES, lists, parameters


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Linear(4, 4)
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))

    def forward(self, x):
        return self.mlp(self.attn(x))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x) * self.scale
        return x


@pytest.fixture
def model():
    m = Model()
    m(torch.randn(3, 4)).square().sum().backward()
    return m


def test_rows_of_a_module(model):
    stats = gradkern.measure(model, count_zeros=True)
    assert stats.names == tuple(n for n, _ in model.named_parameters())
    assert stats.numel == tuple(p.numel() for p in model.parameters())
    assert all(stats.has_grad)
    assert len(stats) == 13
    for t in (stats.norm, stats.max_abs):
        assert t.dtype == torch.float32
        assert t.shape == (13,)
    assert stats.nonfinite.dtype == stats.zeros.dtype == torch.int64
    assert stats.total_norm.shape == ()
    assert stats.clip_coef is None
    assert stats.skip_step is None


def test_three_ways_to_give_parameters(model):
    whole = gradkern.measure(model)
    named = gradkern.measure(model.named_parameters())
    plain = gradkern.measure(model.parameters())
    assert named.names == whole.names
    assert plain.names == tuple(str(i) for i in range(13))
    assert torch.equal(whole.norm, named.norm)
    assert torch.equal(whole.norm, plain.norm)
    assert gradkern.measure(model.scale).names == ("0",)


def test_zeros_are_counted_only_on_request():
    params = parameters([torch.tensor([0.0, -0.0, 1.0])])
    assert gradkern.measure(params).zeros is None
    assert gradkern.measure(params, count_zeros=True).zeros.tolist() == [2]


def test_rows_without_gradient_stay(model):
    model.scale.grad = None
    stats = gradkern.measure(model)
    assert stats.has_grad[0] is False
    assert stats.norm[0].item() == stats.max_abs[0].item() == 0.0
    assert stats.nonfinite[0].item() == 0
    layers = stats.by_layer()
    assert layers.names[0] == "(root)"
    assert layers.has_grad[0] is False
    assert layers.norm[0].item() == 0.0


def test_a_module_without_parameters():
    stats = gradkern.measure(nn.ReLU())
    assert len(stats) == 0
    assert stats.total_norm.item() == 0.0
    assert len(stats.by_layer()) == 0
    assert stats.to_dict()["params"] == {}
    assert "0 rows" in repr(stats)
    assert str(stats)


def test_rms():
    params = parameters([torch.full((16,), 3.0), torch.zeros(0), None, torch.tensor([3.0, 4.0, 0.0, 0.0])])
    stats = gradkern.measure(params, norm_type=1.0)
    assert stats.rms.tolist() == pytest.approx([3.0, 0.0, 0.0, 2.5])


class TestByLayer:
    def test_owners(self, model):
        layers = gradkern.measure(model).by_layer()
        assert layers.names == (
            "(root)",
            "blocks.0.attn",
            "blocks.0.mlp.0",
            "blocks.0.mlp.1",
            "blocks.1.attn",
            "blocks.1.mlp.0",
            "blocks.1.mlp.1",
        )
        assert layers.numel == (4, 20, 40, 36, 20, 40, 36)

    @pytest.mark.parametrize(
        ("depth", "names"),
        [
            (1, ("(root)", "blocks")),
            (2, ("(root)", "blocks.0", "blocks.1")),
            (3, ("(root)", "blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp")),
        ],
    )
    def test_depth(self, model, depth, names):
        assert gradkern.measure(model).by_layer(depth=depth).names == names

    @pytest.mark.parametrize("depth", [-1, "2", 1.5, True])
    def test_a_depth_that_is_no_count_is_refused(self, model, depth):
        expected = rf"\[by_layer\] depth: expected None or an integer of at least 0, got {depth!r}"
        with pytest.raises(ValueError, match=expected):
            gradkern.measure(model).by_layer(depth)

    def test_depth_zero_is_the_model(self, model):
        stats = gradkern.measure(model)
        whole = stats.by_layer(0)
        assert len(whole) == 1
        ref.assert_norm(
            whole.norm[0].item(), ref.total_norm([p.grad for p in model.parameters()]), wide=False, ulp=2
        )

    @given(lists(), st.sampled_from(NORM_TYPES), st.integers(1, 5))
    def test_norms_of_layers(self, tensors, p, layers):
        params = parameters(tensors)
        # A parameter listed twice (the same object) keeps one layer; here only gradients repeat.
        owners = [f"layer{i % layers}" for i in range(len(params))]
        stats = gradkern.measure(
            [(f"{o}.w{i}", q) for i, (o, q) in enumerate(zip(owners, params))], norm_type=p, count_zeros=True
        )
        rolled = stats.by_layer()
        wide = ref.is_wide(tensors)
        for row, name in enumerate(rolled.names):
            members = [t for t, o in zip(tensors, owners) if o == name and t is not None]
            if len(ref.unique(members)) < len([t for t in members if t.numel()]):
                continue
            exact = ref.total_norm(members, p)
            if p == 0 or ref.np.isfinite(float(exact)):
                rows = [float(ref.total_norm([t], p)) for t in members]
                if not wide and rows and max(rows) > 3e38:
                    continue  # a row beyond float32 is inf, and so is its layer
                if not wide and min((r for r in rows if r > 0), default=1) < 1e-36:
                    continue  # rows in float32's subnormal range have lost bits by contract
            ref.assert_norm(rolled.norm[row].item(), exact, wide=wide, ulp=ref.TOTAL_ULP)
            counts = [ref.magnitudes(t) for t in members]
            assert rolled.nonfinite[row].item() == sum(int((~ref.np.isfinite(c)).sum()) for c in counts)
            assert rolled.zeros[row].item() == sum(int((c == 0).sum()) for c in counts)
        assert ref.bits(rolled.total_norm) == ref.bits(stats.total_norm)

    def test_nan_and_inf_stay_in_their_layer(self):
        for p in (2.0, 1.0, 3.0, math.inf):
            params = [
                ("a.w", torch.tensor([1.0])),
                ("b.w", torch.tensor([math.nan])),
                ("b.v", torch.ones(2)),
                ("c.w", torch.tensor([math.inf])),
            ]
            named = [(n, parameters([t])[0]) for n, t in params]
            layers = gradkern.measure(named, norm_type=p).by_layer()
            assert layers.norm[0].item() == 1.0
            assert layers.norm[1].isnan()
            assert layers.max_abs[1].isnan()
            assert layers.norm[2].item() == math.inf
            assert layers.nonfinite.tolist() == [0, 1, 1]

    def test_a_parameter_listed_twice_counts_once(self):
        shared = parameters([torch.tensor([3.0, 4.0])])[0]
        stats = gradkern.measure([("enc.w", shared), ("enc.tied", shared), ("dec.w", shared)])
        assert stats.norm.tolist() == [5.0, 5.0, 5.0]
        assert stats.total_norm.item() == 5.0
        layers = stats.by_layer()
        assert layers.names == ("enc", "dec")
        assert layers.norm[0].item() == 5.0


class TestNames:
    def test_wrappers_are_taken_off(self):
        assert canonical_names(["module.a.weight", "module.b.weight"]) == ("a.weight", "b.weight")
        assert canonical_names(["_orig_mod.module.a.w", "_orig_mod.module.b.w"]) == ("a.w", "b.w")
        assert canonical_names(["module._orig_mod.a", "module._orig_mod.b"]) == ("a", "b")
        assert canonical_names(["a._checkpoint_wrapped_module.w", "a._fsdp_wrapped_module.v"]) == (
            "a.w",
            "a.v",
        )

    def test_a_submodule_called_module_stays(self):
        assert canonical_names(["module.a", "head.w"]) == ("module.a", "head.w")

    def test_names_that_would_collide_stay(self):
        names = ["a._orig_mod.w", "a.w"]
        assert canonical_names(names) == tuple(names)

    def test_wrapped_modules(self, model):
        plain = gradkern.measure(model).names

        class Wrapper(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.module = inner

        assert gradkern.measure(Wrapper(model)).names == plain
        assert gradkern.measure(torch.compile(model)).names == plain
        assert gradkern.measure(Wrapper(torch.compile(model))).names == plain
        assert gradkern.measure(nn.DataParallel(model)).names == plain

    def test_layer_of(self):
        assert layer_of("weight") == "(root)"
        assert layer_of("a.weight") == "a"
        assert layer_of("blocks.1.attn.weight", 2) == "blocks.1"
        assert layer_of("blocks.1.attn.weight", 9) == "blocks.1.attn"


def test_layers_are_found_once(model, monkeypatch):
    """A copy from the host could not be captured in a CUDA graph."""
    expected = gradkern.measure(model).by_layer(2)
    rms = expected.rms
    monkeypatch.setattr(torch, "tensor", lambda *_, **__: pytest.fail("a copy from the host"))
    layers = gradkern.measure(model).by_layer(2)
    assert layers.names == expected.names
    assert torch.equal(layers.norm, expected.norm) and torch.equal(layers.rms, rms)


def test_to_dict_keeps_rows_of_the_same_name():
    params = [torch.nn.Parameter(torch.zeros(n)) for n in (1, 2, 3, 4)]
    for n, p in enumerate(params, 1):
        p.grad = torch.full((n,), float(n))
    rows = gradkern.measure(zip(["w", "w", "w (2)", "w"], params)).to_dict()["params"]
    assert {name: row["numel"] for name, row in rows.items()} == {
        "w": 1,
        "w (2)": 2,
        "w (2) (2)": 3,
        "w (3)": 4,
    }


def test_to_dict_is_plain_json(model):
    data = gradkern.measure(model, count_zeros=True).to_dict()
    assert json.loads(json.dumps(data)) == data
    assert data["total_norm"] == pytest.approx(float(gradkern.measure(model).total_norm))
    row = data["params"]["blocks.0.attn.weight"]
    assert set(row) == {"numel", "has_grad", "norm", "rms", "max_abs", "nonfinite", "zeros"}
    assert row["norm"] == pytest.approx(row["rms"] * math.sqrt(16))
    assert data["clip_coef"] is None


def test_cpu_keeps_every_value(model):
    stats = gradkern.measure(model, norm_type=1.0, count_zeros=True)
    copy = stats.cpu()
    for f in dataclasses.fields(stats):
        a, b = getattr(stats, f.name), getattr(copy, f.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_it_cannot_be_changed(model):
    with pytest.raises(dataclasses.FrozenInstanceError):
        gradkern.measure(model).names = ()


def test_repr_and_str(model):
    model.scale.grad[1] = math.nan
    stats = gradkern.measure(model)
    assert (
        repr(stats)
        == "GradStats(13 rows, 13 with gradient, total_norm=nan, nonfinite=1; print() shows the rows)"
    )
    lines = str(stats).splitlines()
    assert len(lines) == 15
    assert lines[1].split() == ["name", "numel", "norm", "rms", "max_abs", "nonfinite"]
    assert lines[2].split() == ["scale", "4", "nan", "nan", "nan", "1"]
    assert stats.nonfinite_names() == ["scale"]


def test_a_long_table_is_cut():
    text = str(gradkern.measure(parameters([torch.ones(1)] * 1 + [torch.ones(2) for _ in range(99)])))
    assert len(text.splitlines()) == 63
    assert "…" in text


def test_measuring_writes_nothing(model):
    before = [(ref.bits(p.grad), p.grad._version) for p in model.parameters()]
    gradkern.measure(model, norm_type=3.0, count_zeros=True, inv_scale=0.1)
    assert before == [(ref.bits(p.grad), p.grad._version) for p in model.parameters()]


@pytest.mark.parametrize("inv_scale", [0, -2.0, float("inf"), torch.tensor(-1.0)])
def test_an_inv_scale_that_no_scaler_has_is_refused(model, inv_scale):
    with pytest.raises(ValueError, match=r"\[measure\] inv_scale: expected a positive finite number, got"):
        gradkern.measure(model, inv_scale=inv_scale)


def test_the_table_has_no_common_prefix_and_no_endless_names():
    deep = torch.nn.Linear(2, 2)
    for _ in range(30):
        deep = torch.nn.ModuleDict({"wrapped_model": deep})
    for p in deep.parameters():
        p.grad = torch.ones_like(p)
    assert max(len(line) for line in str(gradkern.measure(deep)).splitlines()[1:]) < 110
