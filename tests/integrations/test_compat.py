"""The signatures of amp_C and Transformer Engine, against float64."""

from __future__ import annotations

import pytest
import torch

from gradkern import compat

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def tensors(seed=0):
    """Mixed dtypes, empty ones first and last, a view with an odd offset."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (0, 1, 33, 4097, 12, 0)
    made = [
        torch.randn(n, generator=generator, dtype=torch.float64).to(DTYPES[i % 4])
        for i, n in enumerate(sizes)
    ]
    return [*made[:3], torch.randn(1001, generator=generator)[1:], *made[3:]]


def flag():
    return torch.zeros(1, dtype=torch.int32)


def reference(values):
    return [t.double().square().sum().sqrt() for t in values]


@pytest.mark.parametrize("per_tensor", [False, True, None])
def test_l2norm(per_tensor):
    values, noop = tensors(), flag()
    total, rows = compat.multi_tensor_applier(compat.multi_tensor_l2norm, noop, [values], per_tensor)
    assert (total.dtype, total.shape, noop.item()) == (torch.float32, (1,), 0)
    expected = torch.stack(reference(values))
    torch.testing.assert_close(total.double(), expected.square().sum().sqrt().reshape(1), rtol=1e-6, atol=0)
    assert rows.shape == ((len(values),) if per_tensor else (0,))
    if per_tensor:
        torch.testing.assert_close(rows.double(), expected, rtol=1e-6, atol=0)


def test_unscale_l2norm_leaves_the_tensors():
    values = tensors()
    before = [t.clone() for t in values]
    total, rows = compat.multi_tensor_applier(
        compat.multi_tensor_unscale_l2norm, flag(), [values], torch.tensor([0.25]), True
    )
    expected = torch.stack(reference(values)) * 0.25
    torch.testing.assert_close(rows.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(total.double()[0], expected.square().sum().sqrt(), rtol=1e-6, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(before, values))


@pytest.mark.parametrize("scale", [0.37, torch.tensor(0.37), torch.tensor([0.37])])
@pytest.mark.parametrize("in_place", [True, False])
def test_scale(scale, in_place):
    values, noop = tensors(), flag()
    wanted = [(t.double() * 0.37).to(t.dtype) for t in values]
    targets = values if in_place else [torch.empty_like(t) for t in values]
    compat.multi_tensor_applier(compat.multi_tensor_scale, noop, [values, targets], scale)
    assert noop.item() == 0
    for made, right in zip(targets, wanted):
        torch.testing.assert_close(made, right)


def test_scale_into_another_dtype():
    source, target = torch.randn(100), torch.empty(100, dtype=torch.bfloat16)
    compat.multi_tensor_scale(compat.CHUNK_SIZE, flag(), [[source], [target]], 0.5)
    assert torch.equal(target, (source * 0.5).bfloat16())


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_the_flag_is_set_by_what_is_not_finite(bad):
    for call in (
        lambda noop, t: compat.multi_tensor_l2norm(0, noop, [t]),
        lambda noop, t: compat.multi_tensor_scale(0, noop, [t, t], 0.5),
    ):
        values, noop = tensors(), flag()
        values[2][5] = bad
        call(noop, values)
        assert noop.item() == 1


def test_finite_values_whose_squares_overflow():
    noop = flag()
    total, _ = compat.multi_tensor_l2norm(0, noop, [[torch.full((100,), 1e20)]])
    assert total.item() == pytest.approx(1e21)
    assert noop.item() == 0


def test_no_tensors():
    total, rows = compat.multi_tensor_l2norm(0, flag(), [[]], True)
    assert total.tolist() == [0.0] and rows.shape == (0,)
    compat.multi_tensor_scale(0, flag(), [[], []], 0.5)


def test_other_shapes_are_refused_before_anything_is_written():
    source, target = [torch.ones(2), torch.ones(3)], [torch.zeros(2), torch.zeros(4)]
    with pytest.raises(ValueError, match="equal shapes"):
        compat.multi_tensor_scale(0, flag(), [source, target], 0.5)
    assert target[0].tolist() == [0.0, 0.0]


def test_without_kernels(monkeypatch):
    from gradkern.kernels.backend import NullBackend

    values = tensors()
    expected = torch.stack(reference(values))
    monkeypatch.setattr(compat, "C", NullBackend())
    total, rows = compat.multi_tensor_l2norm(0, flag(), [values], True)
    torch.testing.assert_close(rows.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(total.double()[0], expected.square().sum().sqrt(), rtol=1e-6, atol=0)
