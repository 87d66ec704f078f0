"""Per-parameter statistics over ranks, policies, groups, and the audit."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from torch import nn

import gradkern
from gradkern.distributed import StatsGatherer, explain_norm
from tests.distributed import models


def rows_job(partition: str, norm_type: float) -> list[list[float]]:
    model = models.PARTITIONS[partition](models.build())
    gradients = models.full_gradients(models.build())
    first = next(iter(gradients))
    gradients[first].zero_()
    models.fill(model, gradients)
    plain = models.build()
    models.fill(plain, gradients)
    want = gradkern.measure(plain, norm_type=norm_type, count_zeros=True, inv_scale=0.5)
    got = gradkern.measure(model, norm_type=norm_type, count_zeros=True, inv_scale=0.5)
    assert got.names == want.names
    assert got.numel == want.numel
    for column in ("norm", "l2_norm", "max_abs", "total_norm", "rms"):
        torch.testing.assert_close(getattr(got, column), getattr(want, column), rtol=3e-7, atol=0)
    for column in ("nonfinite", "zeros"):
        assert torch.equal(getattr(got, column), getattr(want, column))
    layers, wanted = got.by_layer(), want.by_layer()
    torch.testing.assert_close(layers.norm, wanted.norm, rtol=5e-7, atol=0)
    clipped = gradkern.GradClipper(model, 0.5, norm_type=norm_type).clip_()
    assert float(clipped.clip_coef) == pytest.approx(0.5 / (float(clipped.total_norm) + 1e-6), rel=1e-6)
    for name, p in model.named_parameters():
        expected = (gradients[name].double() * 0.5 / (float(clipped.total_norm) + 1e-6)).float()
        torch.testing.assert_close(models.local_value(p.grad), models.part_of(expected, p), rtol=3e-7, atol=0)
    return [got.norm.tolist(), [float(got.total_norm), float(clipped.total_norm)]]


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 0.0, 3.0, math.inf])
@pytest.mark.parametrize("partition", ["fsdp+tp", "hsdp", "some blocks", "by hand"])
def test_rows_are_those_of_one_process(ranks, partition, norm_type):
    answers = ranks(4)(rows_job, partition=partition, norm_type=norm_type)
    assert all(a == answers[0] for a in answers)


def policy_job(policy: str) -> None:
    model = models.as_fsdp(models.build())
    models.fill(model, models.full_gradients(models.build()))
    if dist.get_rank() == 1:
        model[1].up.weight.grad._local_tensor[0, 0] = math.inf
    before = [p.grad.to_local().clone() for p in model.parameters()]
    clipper = gradkern.GradClipper(model, 1.0, on_nonfinite=policy)
    if policy == "raise":
        message = r"inf or NaN in: '1.up.weight' \(1 elements\)\. Gradients are unchanged"
        with pytest.raises(RuntimeError, match=message):
            clipper.clip_()
    else:
        stats = clipper.clip_()
        assert stats.nonfinite_names() == ["1.up.weight"]
        assert stats.skip_step is None or bool(stats.skip_step)
        assert (stats.skip_step is None) == (policy == "zero")
    for p, b in zip(model.parameters(), before):
        assert torch.equal(p.grad.to_local(), torch.zeros_like(b) if policy == "zero" else b)
    if policy == "raise_later":
        with pytest.raises(RuntimeError, match=r"an earlier step had inf or NaN in: '1.up.weight' \(1 elem"):
            clipper.clip_()


@pytest.mark.parametrize("policy", ["raise", "raise_later", "zero", "skip"])
def test_policies_decide_alike_on_every_rank(ranks, policy):
    ranks(2)(policy_job, policy=policy)


class Experts(nn.Module):
    """A replicated router, and as many experts as the rank owns: rank 2 of 4 owns none."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.router = nn.Linear(4, 6, bias=False)
        self.experts = nn.ModuleDict()
        for e in {0: [0, 1, 2], 1: [3], 2: [], 3: [4, 5]}[rank]:
            self.experts[f"e{e}"] = nn.Linear(4, 3 + e, bias=False)


def experts_job() -> tuple[float, float]:
    rank = dist.get_rank()
    model = Experts(rank)
    torch.manual_seed(5)  # building the model drew a different number of values on every rank
    whole = {"router": torch.randn(6, 4), **{f"e{e}": torch.randn(3 + e, 4) for e in range(6)}}
    model.router.weight.grad = whole["router"].clone()
    for name, expert in model.experts.items():
        expert.weight.grad = whole[name].clone()
    expected = models.reference(whole)
    clipper = gradkern.GradClipper(
        model,
        expected / 2,
        process_group=dist.group.WORLD,
        in_process_group=lambda name: name.startswith("experts."),
    )
    audit = explain_norm(model, process_group=dist.group.WORLD, in_process_group=lambda n: n.startswith("e"))
    kinds = {p.name.partition(".")[0]: p.counted_as for p in audit.parameters}
    assert kinds["router"] == "plain"
    assert rank == 2 or kinds["experts"] == "plain in process_group"
    stats = clipper.clip_()
    assert float(stats.total_norm) == pytest.approx(expected, rel=3e-7)
    torch.testing.assert_close(model.router.weight.grad, whole["router"] / 2, rtol=1e-5, atol=0)
    # If all plain tensors are declared different parts, the router counts once per rank.
    total = gradkern.get_total_norm([p.grad for p in model.parameters()], process_group=dist.group.WORLD)
    four = {"experts": torch.cat([whole[f"e{e}"].flatten() for e in range(6)])}
    four |= {f"router{r}": whole["router"] for r in range(4)}
    assert float(total) == pytest.approx(models.reference(four) / 2, rel=1e-5)
    return float(stats.total_norm), float(total)


def test_experts_owned_unevenly(ranks):
    answers = ranks(4)(experts_job)
    assert len(set(answers)) == 1


def stages_job(partition: str | None) -> tuple[float, str]:
    """Blocks dealt to two pipeline stages; each stage plain, or sharded over its own two ranks."""
    world = dist.get_world_size()
    mesh = models.init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("pp", "dp"))
    stage = mesh.get_local_rank("pp")
    gradients = models.full_gradients(models.build(5))
    model = models.build(5)
    for index in [0, 1] if stage == 1 else [2, 3, 4]:
        model[index] = nn.Identity()
    if partition == "fsdp":
        for block in model:
            if not isinstance(block, nn.Identity):
                models.fully_shard(block, mesh=mesh["dp"])
    models.fill(model, gradients)
    expected = models.reference(gradients)
    pp_group = mesh["pp"].get_group()
    stats = gradkern.GradClipper(model, expected / 2, pp_group=pp_group).clip_()
    assert float(stats.total_norm) == pytest.approx(expected, rel=3e-7)
    again = gradkern.clip_grad_norm_(model.parameters(), math.inf, pp_group=pp_group)
    assert float(again) == pytest.approx(expected / 2, rel=1e-5)
    gatherer = StatsGatherer(stats.names, stats.numel, pp_group)
    whole = gatherer(stats)
    assert (whole is None) == (stage == 1)
    if whole is not None:
        assert set(whole.names) == set(gradients)
        norms = dict(zip(whole.names, whole.norm.tolist()))
        for name, g in gradients.items():
            assert norms[name] == pytest.approx(float(g.double().norm()), rel=3e-7)
    with pytest.raises(
        ValueError,
        match=r"\[StatsGatherer\] stats: its \d+ rows are not the \d+ that the gatherer was built with",
    ):
        gatherer(stats.by_layer())
    return float(stats.total_norm), type(again).__name__


def tied_stages_job() -> float:
    """Both stages hold the same embedding: it counts once, and both copies are clipped."""
    rank = dist.get_rank()
    gradients = {"embed": torch.full((6, 4), 0.5), "own0": torch.ones(5), "own1": torch.full((7,), 2.0)}
    model = nn.ParameterDict({"embed": torch.zeros(6, 4), f"own{rank}": torch.zeros(5 + 2 * rank)})
    for name, p in model.items():
        p.grad = gradients[name].clone()
    expected = models.reference(gradients)
    last = {"counted_elsewhere": lambda name: name == "embed"} if rank == 1 else {}
    clipper = gradkern.GradClipper(model, expected / 2, pp_group=dist.group.WORLD, **last)
    kinds = [p.counted_as for p in explain_norm(model, **last).parameters]
    assert kinds == (["plain", "plain"] if rank == 0 else ["elsewhere", "plain"])
    stats = clipper.clip_()
    assert float(stats.total_norm) == pytest.approx(expected, rel=3e-7)
    for name, p in model.items():
        torch.testing.assert_close(p.grad, gradients[name] / 2, rtol=1e-5, atol=0)
    return float(stats.total_norm)


def test_an_embedding_tied_over_stages_counts_once(ranks):
    assert len(set(ranks(2)(tied_stages_job))) == 1


@pytest.mark.parametrize(("world", "partition"), [(2, None), (4, None), (4, "fsdp")])
def test_pipeline_stages(ranks, world, partition):
    answers = ranks(world)(stages_job, partition=partition)
    assert set(answers) == {(answers[0][0], "Tensor")}


def audit_job(partition: str) -> dict[str, tuple[int, int]]:
    model = models.PARTITIONS[partition](models.build())
    models.fill(model, models.full_gradients(models.build()))
    audit = explain_norm(model)
    assert f"{audit.counted_here} elements are counted on this rank" in str(audit)
    meshes = [p.device_mesh.size() for p in model.parameters()]
    return {p.name: (p.counted_here, size) for p, size in zip(audit.parameters, meshes)}


@pytest.mark.parametrize("partition", ["fsdp", "fsdp+tp", "hsdp", "by hand"])
def test_every_element_is_counted_once_in_its_mesh(ranks, partition):
    answers = ranks(4)(audit_job, partition=partition)
    for name, p in models.build().named_parameters():
        size = answers[0][name][1]
        # A parameter on a mesh of two ranks is counted once in each of the two such meshes.
        assert sum(a[name][0] for a in answers) == p.numel() * (4 // size), name


def frozen_and_shared_job() -> None:
    model = models.as_fsdp(models.build())
    models.fill(model, models.full_gradients(models.build()))
    named = list(model.named_parameters())
    named[0][1].grad = None
    audit = explain_norm([*named, named[1]])
    assert [audit.parameters[i].counted_as for i in (0, 1, -1)] == ["no gradient", "shard", "repeat"]
    assert audit.parameters[1].mesh == "(dp=2) Shard(dim=0)"


def test_the_audit_names_what_is_left_out(ranks):
    ranks(2)(frozen_and_shared_job)
