"""Groups and every policy over each kind of partition, against float64 on one process.

The ranks hold parts of the weights and gradients; the oracle has all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import gradkern
import gradkern.policies
from tests.distributed import models
from tests.distributed.policy_oracles import POLICIES, Gradients, norm_of

SCALES = [1.0, 1.2, 0.9, 1.1, 30.0, 1.0]
"""The sizes of the gradients, step by step; one is an outlier."""
SHAPES = {
    "router.weight": (4, 6),
    "router.bias": (4,),
    "experts.up": (4, 5, 6),
    "experts.down": (4, 6, 5),
    "experts.bias": (4, 5),
    "norm.weight": (6,),
    "head.weight": (7, 6),
}
Named = dict[str, nn.Parameter]


def whole(seed: int, scale: float = 1.0) -> Gradients:
    """A tensor for each shape, the same on every rank, rounded to float32 and returned in float64."""
    generator = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(shape, generator=generator) * scale for name, shape in SHAPES.items()}
    return {name: t.double() for name, t in made.items()}


def placed(weights: Gradients, where: Callable[[str, Tensor], tuple | None]) -> Named:
    """Parameters placed on the mesh and with the placements that `where` returns; None leaves a plain
    tensor."""
    params = {}
    for name, weight in weights.items():
        at = where(name, weight)
        value = weight.float()
        params[name] = nn.Parameter(value if at is None else distribute_tensor(value, at[0], at[1]))
    return params


def over_tp(weights: Gradients) -> Named:
    """Columns, rows and whole tensors on one mesh; vectors are plain."""
    mesh, by_column = models.mesh_1d("tp"), {"experts.down": Shard(2), "head.weight": Shard(1)}
    return placed(
        weights,
        lambda name, w: None if w.ndim == 1 else (mesh, [by_column.get(name, Shard(0))]),
    )


def over_hsdp(weights: Gradients) -> Named:
    mesh = models.mesh_2d("replicate", "shard")
    return placed(weights, lambda name, w: (mesh, [Replicate(), Shard(0)]))


def over_ep(weights: Gradients) -> Named:
    """FSDP over all ranks; experts are divided over one dimension of a mesh and each cut over the other, or
    replicated there."""
    dense, sparse = models.mesh_1d("dp"), models.mesh_2d("efsdp", "ep")

    def where(name: str, weight: Tensor) -> tuple:
        if not name.startswith("experts."):
            return dense, [Shard(0)]
        if name == "experts.bias":
            return sparse["ep"], [Shard(0)]
        return sparse, [Shard(1), Shard(0)]

    return placed(weights, where)


PARTITIONS = {"tp": over_tp, "hsdp": over_hsdp, "ep": over_ep}


def expected_of(oracles: dict, members: dict[str, list[str]], weights: Gradients, grads: Gradients):
    """(new gradients, whether the step is skipped), where every group decides by itself."""
    clipped: Gradients = {}
    skip = False
    for group, names in members.items():
        own = oracles[group]({n: weights[n] for n in names}, {n: grads[n] for n in names})
        skip = skip or own is None
        clipped |= own or {}
    return (grads if skip else clipped), skip


def groups_of(make: Callable[[], object]) -> dict[str, tuple]:
    return {
        "experts": ("experts.*", make()),
        "vectors": (lambda name, p: p.ndim == 1, make()),
        "rest": ("*", make()),
    }


MEMBERS = {
    "experts": ["experts.up", "experts.down", "experts.bias"],
    "vectors": ["router.bias", "norm.weight"],
    "rest": ["router.weight", "head.weight"],
}


def partition_job(partition: str, policy: str) -> list[tuple[list[float], bool]]:
    make, oracle = POLICIES[policy]
    weights = whole(seed=100)
    params = PARTITIONS[partition](weights)
    clipper = gradkern.GradClipper(params.items(), groups=groups_of(make), on_nonfinite="skip")
    oracles = {group: oracle() for group in MEMBERS}
    found = []
    for step, scale in enumerate(SCALES):
        grads = whole(seed=step % 2, scale=scale)
        for name, p in params.items():
            p.grad = models.local_part(grads[name].float(), p)
        stats = clipper.clip_()
        expected, skip = expected_of(oracles, MEMBERS, weights, grads)
        for name, p in params.items():
            got, want = models.local_value(p.grad).double(), models.part_of(expected[name], p)
            torch.testing.assert_close(got, want, rtol=1e-6, atol=0, msg=lambda m, n=name: f"{n}: {m}")
        for group, names in MEMBERS.items():
            exact = norm_of([grads[n] for n in names])
            assert stats.groups[group].total_norm.item() == pytest.approx(exact, rel=3e-7)
        assert stats.total_norm.item() == pytest.approx(norm_of(list(grads.values())), rel=3e-7)
        found.append((stats.factor.tolist(), bool(stats.skip_step)))
        assert found[-1][1] is skip
    return found


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "partition", ["ep", *(pytest.param(name, marks=pytest.mark.integration) for name in ("tp", "hsdp"))]
)
def test_groups_over_meshes(ranks, partition, policy):
    answers = ranks(4)(partition_job, partition=partition, policy=policy)
    assert all(a == answers[0] for a in answers)
    assert [skip for _, skip in answers[0]] == [policy == "SkipOutliers" and s == 30.0 for s in SCALES]


def experts_job(policy: str) -> list[tuple[dict, bool]]:
    """Experts as plain tensors that only their rank holds, beside replicas."""
    make, oracle = POLICIES[policy]
    rank, weights = dist.get_rank(), whole(seed=100)
    mine = {name: w.float() for name, w in weights.items()}
    for name in MEMBERS["experts"]:
        mine[name] = mine[name][rank].clone()
    params = {name: nn.Parameter(w) for name, w in mine.items()}
    clipper = gradkern.GradClipper(
        [(name.replace("experts", f"experts.{rank}"), p) for name, p in params.items()],
        groups=groups_of(make),
        on_nonfinite="skip",
        process_group=dist.group.WORLD,
        in_process_group=lambda name: name.startswith("experts"),
    )
    apart = apart_of(weights)
    members = {"experts": [n for n in apart if n.startswith("experts")], **dict(list(MEMBERS.items())[1:])}
    oracles = {group: oracle() for group in members}
    found = []
    for step, scale in enumerate(SCALES):
        grads = whole(seed=step % 2, scale=scale)
        for name, p in params.items():
            p.grad = (grads[name][rank] if name in MEMBERS["experts"] else grads[name]).float()
        stats = clipper.clip_()
        expected, skip = expected_of(oracles, members, apart, apart_of(grads))
        for name, p in params.items():
            key = name.replace("experts", f"experts.{rank}")
            torch.testing.assert_close(p.grad.double(), expected[key], rtol=1e-6, atol=0)
        norms = {name: group.total_norm.item() for name, group in stats.groups.items()}
        found.append((norms, bool(stats.skip_step)))
        assert found[-1][1] is skip
    return found


def apart_of(tensors: Gradients) -> Gradients:
    """Every expert by itself, as ``experts.2.up``."""
    own = {
        f"experts.{e}.{name.partition('.')[2]}": tensors[name][e]
        for e in range(4)
        for name in MEMBERS["experts"]
    }
    return own | {name: t for name, t in tensors.items() if not name.startswith("experts.")}


@pytest.mark.parametrize("policy", POLICIES)
def test_groups_over_experts_that_are_plain_tensors(ranks, policy):
    answers = ranks(4)(experts_job, policy=policy)
    assert all(a == answers[0] for a in answers)


def pipeline_job(policy: str, grouped: bool) -> list[tuple[float, bool]]:
    """The first rank has two layers, the second the others, and no parameter of the group "experts"."""
    make, oracle = POLICIES[policy]
    weights, rank = whole(seed=100), dist.get_rank()
    first = ["experts.up", "experts.down", "experts.bias", "norm.weight"]
    mine = [name for name in weights if (name in first) == (rank == 0)]
    params = {name: nn.Parameter(weights[name].float()) for name in mine}
    options = {"groups": groups_of(make)} if grouped else {"policy": make()}
    clipper = gradkern.GradClipper(params.items(), **options, pp_group=dist.group.WORLD, on_nonfinite="skip")
    members = MEMBERS if grouped else {"": list(SHAPES)}
    oracles = {group: oracle() for group in members}
    found = []
    for step, scale in enumerate(SCALES):
        grads = whole(seed=step % 2, scale=scale)
        for name, p in params.items():
            p.grad = grads[name].float()
        stats = clipper.clip_()
        expected, skip = expected_of(oracles, members, weights, grads)
        for name, p in params.items():
            torch.testing.assert_close(p.grad.double(), expected[name], rtol=1e-6, atol=0)
        assert stats.total_norm.item() == pytest.approx(norm_of(list(grads.values())), rel=3e-7)
        for group in stats.groups:
            exact = norm_of([grads[name] for name in members[group]])
            assert stats.groups[group].total_norm.item() == pytest.approx(exact, rel=3e-7)
        found.append((stats.total_norm.item(), bool(stats.skip_step)))
        assert found[-1][1] is skip
    return found


@pytest.mark.parametrize("grouped", [pytest.param(False, marks=pytest.mark.integration), True])
@pytest.mark.parametrize("policy", POLICIES)
def test_policies_over_pipeline_stages(ranks, policy, grouped):
    one, other = ranks(2)(pipeline_job, policy=policy, grouped=grouped)
    assert one == other


def test_every_policy_is_here():
    assert set(POLICIES) == set(gradkern.policies.__all__) - {"Decision", "ElementPolicy", "Policy"}


def verdict_job(over: str, on_nonfinite: str) -> list[tuple[str, bool]]:
    """The first rank has a NaN in the second of three steps: what each step says, and whether it changed the
    gradients of this rank."""
    rank = dist.get_rank()
    param = nn.Parameter(torch.zeros(4))
    groups = {"first": ("0.*", 1.0), "rest": ("*", gradkern.policies.ZClip())}
    clipper = gradkern.GradClipper(
        [(f"{rank}.weight", param)], groups=groups, on_nonfinite=on_nonfinite, **{over: dist.group.WORLD}
    )
    found = []
    for step in range(4):
        param.grad = torch.full((4,), 0.1)
        if step == 1 and rank == 0:
            param.grad[2] = float("nan")
        before = param.grad.clone()
        try:
            skip = clipper.clip_().skip_step
            said = "no verdict" if skip is None else f"skip {bool(skip)}"
        except RuntimeError as error:
            own, others = f"'{rank}.weight' (1 elements)", "parameters of other ranks only"
            said = "error" if (own if rank == 0 else others) in str(error) else str(error)
        found.append((said, not torch.equal(before.nan_to_num(7.0), param.grad.nan_to_num(7.0))))
    return found


VERDICTS = {
    "raise": ["no verdict", "error", "no verdict", "no verdict"],
    "raise_later": ["skip False", "skip True", "error", "skip False"],
    "skip": ["skip False", "skip True", "skip False", "skip False"],
    "zero": ["no verdict"] * 4,
}


@pytest.mark.parametrize("over", ["pp_group", "process_group"])
@pytest.mark.parametrize("on_nonfinite", VERDICTS)
def test_a_nan_of_one_rank_is_the_verdict_of_all(ranks, over, on_nonfinite):
    answers = ranks(2)(verdict_job, over=over, on_nonfinite=on_nonfinite)
    assert answers[0] == answers[1]
    assert [said for said, _ in answers[0]] == VERDICTS[on_nonfinite]
    assert [changed for _, changed in answers[0]] == [False, on_nonfinite == "zero", False, False]


def nowhere_job(over: str) -> str:
    param = nn.Parameter(torch.zeros(4))
    groups = {"a": (f"{dist.get_rank()}.*", 1.0), "typo": ("weihgt", 1.0), "rest": ("*", None)}
    pairs = [(f"{dist.get_rank()}.weight", param), ("shared", nn.Parameter(torch.zeros(1)))]
    with pytest.raises(
        ValueError, match=rf"groups\['typo'\]: has no parameters on any rank of {over}"
    ) as caught:
        gradkern.GradClipper(pairs, groups=groups, **{over: dist.group.WORLD})
    return str(caught.value)


@pytest.mark.parametrize("over", ["pp_group", "process_group"])
def test_a_group_that_is_empty_on_every_rank(ranks, over):
    ranks(2)(nowhere_job, over=over)
