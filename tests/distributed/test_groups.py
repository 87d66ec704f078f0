"""Named groups and policies over ranks: every rank decides as one process does."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist

import gradkern
import gradkern.policies
from gradkern.policies import (
    AGC,
    AdaGC,
    AutoClip,
    Decision,
    PerLayerNorm,
    SkipOutliers,
    Value,
    ZClip,
    custom,
)
from tests.distributed import models

GROUPS = {
    "first": lambda policy: ("0.*", policy),
    "vectors": lambda policy: (lambda name, p: p.ndim == 1, None),
    "rest": lambda policy: ("*", 0.3),
}
POLICIES = {
    "limit": lambda: 0.1,
    "layers": lambda: PerLayerNorm(0.1),
    "AGC": lambda: AGC(0.01),
    "value": lambda: Value(0.5),
    "autoclip": lambda: AutoClip(),
    "zclip": lambda: ZClip(max_norm=0.2),
    "adagc": lambda: AdaGC(lambda_abs=0.2, warmup_steps=1),
}


def groups_job(partition: str, policy: str) -> list[float]:
    sharded, plain = models.PARTITIONS[partition](models.build()), models.build()
    clippers = [
        gradkern.GradClipper(model, groups={n: make(POLICIES[policy]()) for n, make in GROUPS.items()})
        for model in (sharded, plain)
    ]
    for step in range(2):
        gradients = models.full_gradients(models.build(), scale=1.0 + step, seed=step)
        models.fill(sharded, gradients)
        models.fill(plain, gradients)
        got, want = (clipper.clip_() for clipper in clippers)
        for name in GROUPS:
            torch.testing.assert_close(got.groups[name].total_norm, want.groups[name].total_norm)
            torch.testing.assert_close(got.groups[name].factor, want.groups[name].factor)
        torch.testing.assert_close(got.total_norm, want.total_norm)
        torch.testing.assert_close(got.factor, want.factor)
        for a, b in zip(sharded.parameters(), plain.parameters()):
            torch.testing.assert_close(
                models.local_value(a.grad), models.part_of(b.grad, a), rtol=1e-6, atol=0
            )
    return got.factor.tolist()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("partition", ["fsdp+tp", "some blocks"])
def test_groups_decide_as_on_one_process(ranks, partition, policy):
    answers = ranks(4)(groups_job, partition=partition, policy=policy)
    assert all(a == answers[0] for a in answers)


def one_nan_job() -> list[str]:
    """For every policy: what is wrong after a step whose only NaN is on one rank."""
    found = []
    for name, policy in POLICIES.items():
        model = models.as_fsdp_tp(models.build())
        groups = {n: make(policy()) for n, make in GROUPS.items()}
        clipper = gradkern.GradClipper(model, groups=groups, on_nonfinite="skip")
        gradients = models.full_gradients(models.build())
        models.fill(model, gradients)
        clipper.clip_()
        before = clipper.state_dict()
        gradients["0.up.weight"][-1, -1] = math.nan
        models.fill(model, gradients)
        stats = clipper.clip_()
        after = clipper.state_dict()
        if not bool(stats.skip_step):
            found.append(f"{name}: not skipped")
        for group in (group for group in before if "state" in before[group]):
            old, new = before[group]["state"], after[group]["state"]
            # AdaGC keeps a mean for each gradient, and updates those of finite gradients.
            if not (torch.equal(old, new) or (name == "adagc" and bool(new.isfinite().all()))):
                found.append(f"{name}: the state has changed")
        for p, gradient in zip(model.parameters(), gradients.values()):
            if not torch.equal(
                models.local_value(p.grad).nan_to_num(), models.part_of(gradient, p).nan_to_num()
            ):
                found.append(f"{name}: a gradient has changed")
    return found


def test_a_nan_that_one_rank_holds_skips_the_step_of_all(ranks):
    assert ranks(4)(one_nan_job) == [[]] * 4


def disagreement_job() -> str:
    model = models.as_fsdp(models.build())
    pattern = "0.*" if dist.get_rank() == 0 else "1.*"
    with pytest.raises(ValueError, match="groups on every rank") as caught:
        gradkern.GradClipper(model, groups={"a": (pattern, 1.0), "b": ("*", None)})
    return str(caught.value)


def test_ranks_agree_on_the_groups_when_the_clipper_is_built(ranks):
    assert all("got different ones" in message for message in ranks(2)(disagreement_job))


def pipeline_disagreement_job() -> str:
    stage = models.build(blocks=1)
    one, other = {"a": ("*.weight", 1.0), "b": ("*", None)}, {"b": ("*.bias", None), "a": ("*", 1.0)}
    groups = one if dist.get_rank() == 0 else other
    with pytest.raises(ValueError, match="expected the same names in the same order on every rank") as caught:
        gradkern.GradClipper(stage, groups=groups, pp_group=dist.group.WORLD)
    return str(caught.value)


def test_stages_of_a_pipeline_agree_on_the_groups_too(ranks):
    assert all("[GradClipper" in message for message in ranks(2)(pipeline_disagreement_job))


DIFFERENCES = {
    "policy": ({"b": ("*", None)}, {"b": ("*", 1.0)}, r"groups\['b'\]"),
    "limit": ({"b": ("*", 1.0)}, {"b": ("*", 2.0)}, r"groups\['b'\]"),
    "setting": ({"b": ("*", ZClip())}, {"b": ("*", ZClip(z_thresh=3.0))}, r"groups\['b'\]"),
    "max_norm": (1.0, 2.0, "max_norm"),
    "alone": (ZClip(), AutoClip(), "policy"),
    "norm_type": ({"norm_type": 1.0}, {"norm_type": 2.0}, "norm_type"),
    "on_nonfinite": ({"on_nonfinite": "skip"}, {"on_nonfinite": "zero"}, "on_nonfinite"),
}
"""What two ranks return, and what the error names."""


def clipper_with(params: object, given: object, **ranks: object) -> gradkern.GradClipper:
    if not isinstance(given, dict):
        kind = "max_norm" if isinstance(given, float) else "policy"
        return gradkern.GradClipper(params, **{kind: given}, **ranks)
    if set(given) <= {"norm_type", "on_nonfinite"}:
        return gradkern.GradClipper(params, 1.0, **given, **ranks)
    return gradkern.GradClipper(params, groups={"a": ("*.gain", 1.0), **given}, **ranks)


def difference_job(kind: str, over: str) -> str:
    one, other, named = DIFFERENCES[kind]
    model = models.as_fsdp(models.build(blocks=1)) if over == "mesh" else models.build(blocks=1)
    ranks = {} if over == "mesh" else {over: dist.group.WORLD}
    mine = one if dist.get_rank() == 0 else other
    with pytest.raises(ValueError, match=rf"\[GradClipper\] {named}: expected the same on every") as caught:
        clipper_with(model, mine, **ranks)
    clipper_with(model, one, **ranks)  # the ranks are still in step
    return str(caught.value)


@pytest.mark.parametrize("over", ["process_group", "pp_group", "mesh"])
@pytest.mark.parametrize("kind", DIFFERENCES)
def test_ranks_agree_on_policies_and_settings(ranks, kind, over):
    for message in ranks(2)(difference_job, kind=kind, over=over):
        assert ("the mesh (dp=2)" if over == "mesh" else over) in message and "on this one" in message


class OfARank(gradkern.policies.Policy):
    """A policy of the user's, with an attribute that is about the rank."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()

    def decide(self, stats: gradkern.GradStats) -> Decision:
        return Decision(0.5)


def own_policy_job() -> float:
    param = torch.nn.Parameter(torch.zeros(2))
    param.grad = torch.ones(2)
    clipper = gradkern.GradClipper([param], policy=OfARank(), pp_group=dist.group.WORLD)
    return clipper.clip_().clip_coef.item()


def test_attributes_of_a_users_policy_may_differ(ranks):
    assert ranks(2)(own_policy_job) == [0.5, 0.5]


def pipeline_job() -> dict[str, float]:
    """Each stage has other parameters; the second has none of the group "first"."""
    stage = models.build(blocks=1)
    names = [f"{dist.get_rank()}.{name}" for name, _ in stage.named_parameters()]
    pairs = list(zip(names, stage.parameters()))
    for _, p in pairs:
        p.grad = torch.ones_like(p)
    clipper = gradkern.GradClipper(
        pairs, groups={"first": ("0.*", 1.0), "second": ("1.*", None)}, pp_group=dist.group.WORLD
    )
    stats = clipper.clip_()
    assert stats.groups["second"].factor.item() == 1.0
    return {name: group.total_norm.item() for name, group in stats.groups.items()}


def test_groups_over_pipeline_stages(ranks):
    size = sum(p.numel() for p in models.build(blocks=1).parameters())
    for answer in ranks(2)(pipeline_job):
        assert answer == pytest.approx({"first": math.sqrt(size), "second": math.sqrt(size)}, rel=1e-6)


SKIPPING = {
    "outliers": lambda: SkipOutliers(4.0, 8, min_steps=4),
    "custom": lambda: custom(lambda stats: Decision(1.0, stats.norm.amax() > 100)),
}


def pipeline_skip_job(policy: str, holds: str, on_nonfinite: str) -> list[tuple[bool, bool, dict]]:
    """Each stage has another parameter, and a group or the whole model skips for that of the first."""
    rank = dist.get_rank()
    param = torch.nn.Parameter(torch.zeros(4))
    groups = {"first": ("0.*", SKIPPING[policy]()), "rest": ("*", None)}
    options = {"groups": groups} if holds == "group" else {"policy": SKIPPING[policy]()}
    optimizer = torch.optim.SGD([param], lr=1.0, fused=True)
    clipper = gradkern.GradClipper(
        [(f"{rank}.weight", param)],
        **options,
        pp_group=dist.group.WORLD,
        on_nonfinite=on_nonfinite,
        optimizer=optimizer,
    )
    found = []
    for size in (1.0, 1.1, 0.9, 1.0, 1000.0, 1.0):
        param.grad = torch.full((4,), 1.0 if rank else size)
        before = param.detach().clone()
        skip = clipper.clip_().skip_step
        optimizer.step()
        state = {k: v["state"].tolist() for k, v in clipper.state_dict().items() if v}
        found.append((bool(skip), torch.equal(before, param), state))
    return found


@pytest.mark.parametrize("on_nonfinite", ["propagate", "skip"])
@pytest.mark.parametrize("holds", ["group", "model"])
@pytest.mark.parametrize("policy", SKIPPING)
def test_stages_of_a_pipeline_skip_together(ranks, policy, holds, on_nonfinite):
    one, other = ranks(2)(pipeline_skip_job, policy=policy, holds=holds, on_nonfinite=on_nonfinite)
    assert one == other
    assert [step[:2] for step in one] == [(False, False)] * 4 + [(True, True), (False, False)]


def counts_job(on_nonfinite: str) -> list[list[int]]:
    """For 1, 3 and 6 groups: how often one step reads, scales and reduces."""
    from gradkern.distributed import packing
    from gradkern.kernels import scale

    found = []
    for names in (["*"], ["0.*", "*.bias", "*"], ["0.*.weight", "0.*", "1.*.weight", "1.*", "*.weight", "*"]):
        model = models.as_fsdp(models.build(blocks=3))
        groups = {pattern: (pattern, 0.1 * (1 + i)) for i, pattern in enumerate(names)}
        clipper = gradkern.GradClipper(model, groups=groups, on_nonfinite=on_nonfinite)
        models.fill(model, models.full_gradients(models.build(blocks=3)))
        calls = [0, 0, 0]

        def counted(slot, function, calls=calls):
            def call(*args, **options):
                calls[slot] += 1
                return function(*args, **options)

            return call

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(packing, "C", Counting(packing.C, "partials", lambda f: counted(0, f)))
            patch.setattr(scale, "C", Counting(scale.C, "scale_", lambda f: counted(1, f)))
            patch.setattr(dist, "all_reduce", counted(2, dist.all_reduce))
            clipper.clip_()
        found.append(calls)
    return found


class Counting:
    """A backend that counts the calls of one function."""

    def __init__(self, backend, name, wrap):
        self._backend, self._name, self._wrap = backend, name, wrap

    def __getattr__(self, name):
        found = getattr(self._backend, name)
        return self._wrap(found) if name == self._name else found


@pytest.mark.parametrize("on_nonfinite", ["propagate", "skip"])
def test_the_number_of_groups_adds_no_read_no_scaling_and_no_collective(ranks, on_nonfinite):
    for one, three, six in ranks(2)(counts_job, on_nonfinite=on_nonfinite):
        assert one == three == six
        assert one[:2] == [1, 1] and one[2] >= 1


STATEFUL = {
    "zclip": lambda: ZClip(warmup_steps=2),
    "adagc": lambda: AdaGC(warmup_steps=2),
    "autoclip": lambda: AutoClip(50.0, 4),
}


def resumed_job(policy: str) -> bool:
    """Training continues with the same bits from a loaded state; a NaN on one rank skips the step on all."""

    def steps(clipper, model, seeds):
        found = []
        for seed in seeds:
            models.fill(model, models.full_gradients(models.build(), scale=1.0 + 9 * (seed == 5), seed=seed))
            if seed == 6 and dist.get_rank() == 0:
                next(iter(model.parameters())).grad.to_local().flatten()[0] = math.nan
            stats = clipper.clip_()
            found.append((stats.factor.tolist(), stats.skip_step.item()))
            found[-1] += tuple(p.grad.to_local().tolist() for p in model.parameters() if seed != 6)
        return found

    def build(model):
        groups = {"a": ("0.*", STATEFUL[policy]()), "b": ("*", STATEFUL[policy]())}
        return gradkern.GradClipper(model, groups=groups, on_nonfinite="skip")

    model = models.as_fsdp(models.build())
    first = build(model)
    steps(first, model, range(4))
    second = build(model)
    second.load_state_dict(first.state_dict())
    one, other = steps(first, model, range(4, 9)), steps(second, model, range(4, 9))
    assert [step[1] for step in one] == [False, False, True, False, False]
    return one == other


@pytest.mark.parametrize("policy", STATEFUL)
def test_a_loaded_state_goes_on_over_ranks(ranks, policy):
    assert ranks(2)(resumed_job, policy=policy) == [True, True]
