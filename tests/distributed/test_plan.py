"""The plan that GradClipper keeps from step to step: agreement at construction, and changes of the model."""

from __future__ import annotations

import math
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

import gradkern
from gradkern.distributed import functions as functional_over_ranks
from tests.distributed import models
from tests.distributed.test_norms import close


def kept(clipper: gradkern.GradClipper) -> object:
    return clipper._cache.plan


def steps_job() -> None:
    model = models.as_fsdp(models.build())
    clipper = gradkern.GradClipper(model, math.inf)  # before there is any gradient
    plan = kept(clipper)
    for step in range(3):
        gradients = models.full_gradients(models.build(), seed=step)
        models.fill(model, gradients)
        close(clipper.clip_().total_norm, models.reference(gradients))
        assert kept(clipper) is plan  # new gradients of the old kind
        if step == 1:
            model.zero_grad(set_to_none=True)
            stats = clipper.clip_()
            assert float(stats.total_norm) == 0.0 and not any(stats.has_grad)
            assert kept(clipper) is plan


def test_the_plan_outlives_steps(ranks):
    ranks(2)(steps_job)


def changes_job() -> None:
    """Each change makes another plan, and the norm stays that of the gradients there are."""
    model = models.as_reversed_meshes(models.build())
    gradients = models.full_gradients(models.build())
    models.fill(model, gradients)
    clipper = gradkern.GradClipper(model, math.inf)

    def check(expected: dict[str, torch.Tensor]) -> object:
        before = kept(clipper)
        close(clipper.clip_().total_norm, models.reference(expected))
        assert kept(clipper) is not before
        return kept(clipper)

    close(clipper.clip_().total_norm, models.reference(gradients))
    p = model[0].norm.weight  # replicated
    world = dist.get_world_size()
    p.grad = DTensor.from_local(gradients["0.norm.weight"] / world, p.device_mesh, [models.Partial()])
    check(gradients)  # other placements
    p.grad = p.grad.redistribute(placements=p.placements)
    frozen = {name: g for name, g in gradients.items() if name != "0.norm.weight"}
    p.requires_grad_(False)
    p.grad = None
    check(frozen)  # takes no part
    model[0].gain = nn.Parameter(torch.ones(1))
    model[0].gain.grad = torch.full((1,), 5.0)
    frozen["0.gain"] = model[0].gain.grad
    check(frozen)  # a plain parameter in a sharded one's place
    del model[2]
    check({name: g for name, g in frozen.items() if not name.startswith("2.")})


def test_changes_make_another_plan(ranks):
    ranks(2)(changes_job)


def disagreement_job(kind: str) -> str:
    model = models.as_fsdp(models.build())
    rank = dist.get_rank()
    params = list(model.named_parameters())
    options = {}
    if kind == "fewer":
        params = params[: len(params) - rank]
    elif kind == "order":
        params = params if rank == 0 else params[::-1]
    else:
        options = {"norm_type": 2.0 + rank}
    with pytest.raises(ValueError, match=r"^\[GradClipper\] (params|norm_type): expected the same") as caught:
        gradkern.GradClipper(params, 1.0, **options)
    models.fill(model, models.full_gradients(models.build()))
    gradkern.GradClipper(model, 1.0).clip_()  # the ranks are still in step
    return str(caught.value)


@pytest.mark.parametrize("kind", ["fewer", "order", "norm_type"])
def test_ranks_that_disagree_are_told_when_the_clipper_is_built(ranks, kind):
    messages = ranks(2)(disagreement_job, kind=kind)
    for rank, message in enumerate(messages):
        got = f"{2.0 + rank} on this one" if kind == "norm_type" else "different ones; this rank has"
        assert f"every rank of the mesh (dp=2), got {got}" in message


def verify_job() -> None:
    from gradkern.clipping import route
    from gradkern.kernels import verify

    model = models.as_fsdp_tp(models.build())
    gradients = models.full_gradients(models.build())
    route.VERIFY = True
    try:
        models.fill(model, gradients)
        expected = models.reference(gradients)
        close(gradkern.clip_grad_norm_(model.parameters(), expected / 2), expected)
        params = list(model.parameters())
        total = gradkern.get_total_norm([p.grad for p in params])
        before = verify.snapshot([p.grad for p in params])
        with pytest.raises(RuntimeError, match=r"GRADKERN_VERIFY: total_norm is .*, float64 says"):
            verify.check_total("get_total_norm", [p.grad for p in params], 2.0, total * 1.001)
        with pytest.raises(
            RuntimeError, match=r"GRADKERN_VERIFY: gradient 0 is not 0\.\d+ times what it was"
        ):
            verify.check_clip("clip_grad_norm_", before, params, float(total) / 2, 2.0, total)
        right_calls(model, params, expected)
        with (
            mock.patch.object(functional_over_ranks, "written_shards", return_value=[]),
            mock.patch.object(functional_over_ranks, "scale_"),
        ):
            with pytest.raises(RuntimeError, match=r"\[clip_grads_with_norm_\] GRADKERN_VERIFY: gradient 0"):
                gradkern.clip_grads_with_norm_(params, float(total) / 9, total)
            with pytest.raises(RuntimeError, match=r"\[clip_grad_value_\] GRADKERN_VERIFY: gradient 0"):
                gradkern.clip_grad_value_(params, 1e-9)
    finally:
        route.VERIFY = False


def right_calls(model: torch.nn.Module, params: list[torch.nn.Parameter], expected: float) -> None:
    gradkern.clip_grads_with_norm_(params, expected / 4, gradkern.get_total_norm([p.grad for p in params]))
    gradkern.measure(model, norm_type=1.0, count_zeros=True)
    for policy in ("propagate", "zero", "skip"):
        gradkern.GradClipper(model, expected / 8, on_nonfinite=policy).clip_()
    gradkern.clip_grad_value_(params, 1e-3)


@pytest.mark.integration
def test_verify_compares_sharded_gradients_too(ranks):
    ranks(4)(verify_job)


def compile_job() -> None:
    """Inside a compiled function DTensors are clipped between graphs; fullgraph=True is refused."""
    model, gradients = models.as_fsdp(models.build(1)), models.full_gradients(models.build(1))
    params = list(model.parameters())
    expected = models.reference(gradients)
    functions = (
        lambda: gradkern.clip_grad_norm_(params, expected / 2),
        lambda: gradkern.clip_grads_with_norm_(
            params, expected / 2, gradkern.get_total_norm([p.grad for p in params])
        ),
        lambda: gradkern.clip_grad_value_(params, 0.25),
    )
    for index, function in enumerate(functions):
        torch._dynamo.reset()
        models.fill(model, gradients)
        message = "gradkern: gradients that are DTensors, and named groups, are clipped outside"
        with pytest.raises(torch._dynamo.exc.Unsupported, match=message):
            torch.compile(function, fullgraph=True, backend="eager")()
        torch._dynamo.reset()
        total = torch.compile(function, backend="eager")()
        for name, p in model.named_parameters():
            scaled = gradients[name].clamp(-0.25, 0.25) if index == 2 else gradients[name] / 2
            torch.testing.assert_close(p.grad.full_tensor(), scaled, rtol=1e-5, atol=1e-6)
        if index == 0:
            close(total, expected)
    torch._dynamo.reset()


@pytest.mark.integration
def test_inside_torch_compile(ranks):
    ranks(2)(compile_job)


def compiled_groups_job() -> None:
    p = torch.nn.Parameter(torch.zeros(4))
    expected = math.sqrt(4 * sum((1 + rank) ** 2 for rank in range(dist.get_world_size())))
    functions = (
        lambda: gradkern.clip_grad_norm_([p], math.inf, process_group=dist.group.WORLD),
        lambda: gradkern.clip_grad_norm_([p], math.inf, pp_group=dist.group.WORLD),
        lambda: gradkern.get_total_norm([p.grad], process_group=dist.group.WORLD),
    )
    for function in functions:
        torch._dynamo.reset()
        p.grad = torch.full((4,), 1.0 + dist.get_rank())
        assert torch.compile(function, backend="eager")().item() == pytest.approx(expected)
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported, match="named groups, are clipped outside"):
            torch.compile(function, fullgraph=True, backend="eager")()
    torch._dynamo.reset()


@pytest.mark.integration
def test_named_groups_are_not_lost_in_a_graph(ranks):
    ranks(2)(compiled_groups_job)


def empty_job() -> None:
    """A pipeline stage without parameters takes part, too."""
    p = torch.nn.Parameter(torch.zeros(4))
    p.grad = torch.full((4,), 2.0)
    params = [p] if dist.get_rank() == 0 else []
    stats = gradkern.GradClipper(params, 1.0, pp_group=dist.group.WORLD).clip_()
    assert stats.total_norm.item() == 4.0
    with pytest.raises(ValueError, match=r"params: expected at least one parameter, got none"):
        gradkern.GradClipper([], 1.0)


def test_a_stage_without_parameters(ranks):
    ranks(2)(empty_job)


def resumed_monitor_job(folder: str) -> None:
    """A resumed run: every rank counts from the same step, so that all measure in the same one."""
    model = models.as_fsdp(models.build(1))
    gradients = models.full_gradients(models.build(1))
    models.fill(model, gradients)
    for begin in (0, 2):  # 3 was not recorded: it is counted again
        with gradkern.GradMonitor(model, run_dir=folder, every=2) as monitor:
            assert monitor.step == begin
            for _ in range(3):
                monitor.record()
        dist.barrier()
    with gradkern.History.open(folder) as history:
        assert history.steps.tolist() == [2, 4]
    dist.barrier()  # read on every rank, before it is damaged
    if dist.get_rank() == 0:
        (Path(folder) / "history.db").write_bytes(b"no history" * 99)
    dist.barrier()
    wrong = gradkern.HistoryError if dist.get_rank() == 0 else RuntimeError
    with pytest.raises(wrong, match="history.db" if dist.get_rank() == 0 else "another rank could not"):
        gradkern.GradMonitor(model, run_dir=folder)


def default_folder_job(folder: str) -> None:
    """Ranks whose clocks differ agree on one folder; if it cannot be made, no rank waits."""
    rank = dist.get_rank()
    runs = Path(folder) / "gradkern-runs"
    with mock.patch("time.strftime", return_value=f"{runs}/at-{rank}"):
        for name in ("at-0", "at-0-2"):
            with gradkern.GradMonitor(models.build(1), all_ranks=True) as monitor:
                assert monitor.run_dir == runs / name / f"rank{rank}"
        dist.barrier()
        if rank == 0:
            runs.rename(Path(folder) / "elsewhere")
            runs.touch()
        wrong = gradkern.HistoryError if rank == 0 else RuntimeError
        with pytest.raises(wrong, match="cannot be written" if rank == 0 else "rank 0 could not make"):
            gradkern.GradMonitor(models.build(1), all_ranks=True)


def test_all_ranks_share_a_folder_by_default(ranks, tmp_path):
    ranks(2)(default_folder_job, folder=str(tmp_path))


def test_a_monitor_that_resumes_counts_alike_on_every_rank(ranks, tmp_path):
    ranks(2)(resumed_monitor_job, folder=str(tmp_path / "run"))


def wrong_groups_job() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    mesh = models.mesh_1d()
    others = [dist.new_group([rank]) for rank in range(2)][1 - dist.get_rank()]
    calls = {
        "clip_grad_norm_": lambda **groups: gradkern.clip_grad_norm_([p], 0.1, **groups),
        "get_total_norm": lambda **groups: gradkern.get_total_norm([p.grad], **groups),
        "measure": lambda **groups: gradkern.measure([p], **groups),
        "GradClipper": lambda **groups: gradkern.GradClipper([p], 0.1, **groups),
    }
    for operation, call in calls.items():
        for key in ("process_group", "pp_group"):
            expected = rf"\[{operation}\] {key}: expected a torch.distributed.ProcessGroup, got "
            with pytest.raises(TypeError, match=expected + r"DeviceMesh; pass mesh.get_group\(\)"):
                call(**{key: mesh})
            with pytest.raises(TypeError, match=expected + "str"):
                call(**{key: "dp"})
            with pytest.raises(ValueError, match=rf"\[{operation}\] {key}: this rank is not in the group"):
                call(**{key: others})
    assert p.grad.tolist() == [1.0, 1.0]


def test_what_is_no_group_of_this_rank_is_refused(ranks):
    ranks(2)(wrong_groups_job)
