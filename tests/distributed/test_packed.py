"""The rows that ranks exchange, in one process: packed by the kernels and by torch, against float64."""

from __future__ import annotations

import math

import pytest
import torch

from gradkern.distributed import packed, packing
from tests.distributed.models import reference

ORDERS = [2.0, 1.0, 3.0, 0.5, 0.0, -1.0, math.inf, -math.inf]
CPU = torch.device("cpu")


def shards(kind: str) -> list[torch.Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    scale, dtype = {
        "float32": (1.0, torch.float32),
        "bfloat16": (1.0, torch.bfloat16),
        "tiny": (1e-250, torch.float64),
        "huge": (1e250, torch.float64),
        "small float32": (1e-38, torch.float32),
    }[kind]
    made = [torch.randn(n, generator=generator, dtype=torch.float64) * scale for n in (40000, 7, 0, 300)]
    return [*(t.to(dtype) for t in made), None]


@pytest.mark.parametrize("norm_type", ORDERS)
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "tiny", "huge", "small float32"])
def test_both_packings_give_the_norms_of_the_rows_and_the_whole(kind, norm_type):
    listed = shards(kind)
    present = {str(i): s for i, s in enumerate(listed) if s is not None and s.numel()}
    expected = [reference({"": s}, norm_type) if s is not None and s.numel() else 0.0 for s in listed]
    expected.append(reference(present, norm_type))
    compiled = packing.pack(listed, norm_type, CPU, per_tensor=True)
    by_torch = packing._pack_with_torch(listed, norm_type, CPU, per_tensor=True)
    for rows in (compiled, by_torch):
        torch.testing.assert_close(
            packed.finish(rows, norm_type), torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=0
        )
    assert torch.equal(compiled.keys[:, packed.MAX_BITS], by_torch.keys[:, packed.MAX_BITS])
    for column in (packed.NONFINITE, packed.NUMEL):
        assert torch.equal(compiled.sums[:, column], by_torch.sums[:, column])


@pytest.mark.parametrize("norm_type", ORDERS)
@pytest.mark.parametrize(("value", "order_free"), [(math.nan, True), (math.inf, False)])
def test_nan_and_inf_survive_a_merge_in_any_order(value, order_free, norm_type):
    sick, healthy = torch.tensor([1.0, value, 2.0]), torch.tensor([3.0, 4.0])
    for pack in (packing.pack, packing._pack_with_torch):
        parts = [pack([t], norm_type, CPU, per_tensor=False) for t in (sick, healthy)]
        for listed in (parts, parts[::-1]):
            norm = float(packed.finish(packed.merge(listed, norm_type), norm_type))
            if norm_type == 0.0:
                assert norm == 5.0
            elif order_free:
                assert math.isnan(norm)
            else:
                assert norm == (math.inf if norm_type > 0 else pytest.approx(reference_of_inf(norm_type)))


def reference_of_inf(norm_type: float) -> float:
    """Orders below 0: an infinite element adds nothing."""
    finite = [1.0, 2.0, 3.0, 4.0]
    return min(finite) if math.isinf(norm_type) else sum(x**norm_type for x in finite) ** (1 / norm_type)


def test_a_shard_listed_twice_counts_once():
    t = torch.full((10,), 3.0)
    for pack in (packing.pack, packing._pack_with_torch):
        rows = pack([t, t], 2.0, CPU, per_tensor=True)
        assert packed.finish(rows, 2.0).tolist() == [math.sqrt(90)] * 3
