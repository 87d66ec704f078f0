"""Gradients that real forward and backward passes made: wrappers, pipelines, scalers, folds, offload."""

from __future__ import annotations

import math
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.amp import GradScaler
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.nn.parallel import DistributedDataParallel

import gradkern
from gradkern.distributed import StatsGatherer, explain_norm
from tests.distributed import models
from tests.distributed.test_norms import close


def batch(rows: int = 8, width: int = 10) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(11))


def backward(model: nn.Module, x: torch.Tensor, scale: float = 1.0) -> None:
    model.zero_grad()
    (model(x).square().sum() * scale).backward()


def whole_gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return models.whole({name: p.grad for name, p in model.named_parameters()})


# ---- one process's gradients, from a real backward over ranks ----


def backward_job(partition: str, dtype: torch.dtype) -> float:
    model = models.PARTITIONS[partition](models.build(dtype=dtype))
    alone = models.build(dtype=dtype)
    for m in (model, alone):
        backward(m, batch().to(dtype))  # the same batch everywhere: averaging changes nothing
    gradients, expected = whole_gradients(model), whole_gradients(alone)
    slack = 2e-5 if dtype == torch.float32 else 0.05
    for name, g in gradients.items():
        assert float((g - expected[name]).norm()) <= slack * float(expected[name].norm()), name
    norm = models.reference(gradients)
    for _ in range(2):  # the clipper's plan is made, then used again
        stats = gradkern.GradClipper(model, math.inf).clip_()
        close(stats.total_norm, norm)
    clipper = gradkern.GradClipper(model, norm / 2)
    stats = clipper.clip_()
    for name, value in zip(stats.names, stats.norm.tolist()):
        assert value == pytest.approx(float(gradients[name].double().norm()), rel=3e-7)
    close(clipper.clip_().total_norm, models.reference(whole_gradients(model)))
    return float(stats.total_norm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("world", "partition"),
    [(2, "fsdp"), (4, "fsdp"), (4, "hsdp"), (2, "tp"), (4, "fsdp+tp"), (4, "some blocks")],
)
def test_a_real_backward(ranks, world, partition, dtype):
    assert len(set(ranks(world)(backward_job, partition=partition, dtype=dtype))) == 1


def mistakes_job() -> list[list[str]]:
    """The warnings about gradients that are gone, and about gradients that a step has used."""
    said = []
    for call in (
        lambda model: gradkern.clip_grad_norm_(model.parameters(), 1.0),
        lambda model: gradkern.clip_grad_norm_([{"params": list(model.parameters()), "max_norm": 1.0}], 1.0),
        lambda model: gradkern.GradClipper(model, 1.0).clip_(),
        lambda model: gradkern.GradClipper(model, groups={"all": ("*", 1.0)}).clip_(),
        lambda model: gradkern.adaptive_clip_grad_(model.parameters()),
    ):
        model = models.as_fsdp(models.build())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call(model)
            backward(model, batch())
            call(model)
        said.append([str(w.message) for w in caught])
    return said


def test_gradients_that_are_gone_are_told_of(ranks):
    for said in ranks(2)(mistakes_job):
        for messages in said:
            assert len(messages) == 1 and "no parameter has a gradient" in messages[0], messages


def strided_job() -> list[str]:
    model = models.as_fsdp_tp(models.build())
    models.fill(model, models.full_gradients(models.build()))
    audit = explain_norm(model)
    assert audit.counted_here == sum(
        p.grad._local_tensor.numel()
        for p in model.parameters()
        if not (p.placements[-1].is_replicate() and p.device_mesh.get_coordinate()[-1] != 0)
    )
    return [p.mesh for p in audit.parameters]


def test_fsdp_over_tensor_parallel_has_strided_shards(ranks):
    assert any("_StridedShard" in mesh for mesh in ranks(4)(strided_job)[0])


def ddp_job(as_view: bool) -> float:
    model = DistributedDataParallel(models.build(), gradient_as_bucket_view=as_view)
    x = batch(rows=8)
    rank, world = dist.get_rank(), dist.get_world_size()
    model.zero_grad()
    (model(x[rank::world]).square().sum() * world).backward()  # DDP averages
    alone = models.build()
    backward(alone, x)
    gradients = whole_gradients(model.module)
    expected = models.reference(gradients)
    assert expected == pytest.approx(models.reference(whole_gradients(alone)), rel=1e-5)
    stats = gradkern.GradClipper(model, expected / 2).clip_()
    close(stats.total_norm, expected)
    assert stats.names == tuple(name for name, _ in alone.named_parameters())
    assert type(gradkern.clip_grad_norm_(model.parameters(), math.inf)) is torch.Tensor
    assert models.reference(whole_gradients(model.module)) == pytest.approx(expected / 2, rel=1e-5)
    return float(stats.total_norm)


@pytest.mark.parametrize(("world", "as_view"), [(2, False), (4, True)])
def test_distributed_data_parallel(ranks, world, as_view):
    assert len(set(ranks(world)(ddp_job, as_view=as_view))) == 1


# ---- pipelines ----


def pipeline_job(folder: str) -> tuple[float, list[str]]:
    """One stage per rank, microbatches through `ScheduleGPipe`; one history for all stages."""
    rank, world = dist.get_rank(), dist.get_world_size()
    whole = models.build(blocks=world + 1)
    x = batch()
    alone = models.build(blocks=world + 1)
    alone(x).square().sum().backward()
    named = nn.Module()
    held = nn.ModuleDict({str(i): whole[i] for i in range(world + 1) if min(i, world - 1) == rank})
    named.blocks = held
    stage_model = nn.Sequential(*held.values())
    stage = PipelineStage(stage_model, rank, world, torch.device("cpu"))
    schedule = ScheduleGPipe(
        stage, n_microbatches=2, loss_fn=lambda y, _: y.square().sum(), scale_grads=False
    )
    if rank == 0:
        schedule.step(x)
    elif rank == world - 1:
        schedule.step(target=torch.zeros(8, 10))
    else:
        schedule.step()
    expected = models.reference(whole_gradients(alone))
    pairs = [(n.removeprefix("blocks."), p) for n, p in named.named_parameters()]
    group = dist.group.WORLD
    clipper = gradkern.GradClipper(pairs, expected / 2, pp_group=group)
    gatherer = StatsGatherer(clipper.names, [p.numel() for _, p in pairs], group)
    stats = clipper.clip_()
    assert float(stats.total_norm) == pytest.approx(expected, rel=1e-5)  # other microbatches, other rounding
    gathered = gatherer(stats)
    with gradkern.GradMonitor(alone, run_dir=folder) as monitor:
        monitor.record(gathered if gathered is not None else stats, loss=1.0)
    if rank != 0:
        return float(stats.total_norm), []
    rows = dict(zip(gathered.names, gathered.norm.tolist()))
    for name, g in whole_gradients(alone).items():
        assert rows[name] == pytest.approx(float(g.double().norm()), rel=1e-4), name
    with gradkern.History.open(folder) as history:
        assert history.total_norm.tolist() == [float(stats.total_norm)]
        return float(stats.total_norm), list(history.names)


@pytest.mark.parametrize("world", [2, 4])
def test_pipeline_schedule(ranks, world, tmp_path):
    answers = ranks(world)(pipeline_job, folder=str(tmp_path / "run"))
    assert len({total for total, _ in answers}) == 1
    assert set(answers[0][1]) == {n for n, _ in models.build(blocks=world + 1).named_parameters()}
    assert [p.name for p in tmp_path.iterdir()] == ["run"]  # no rank but the first wrote one


# ---- mixed precision ----


def scaler_job(kind: str, fold: bool, poison: int | None) -> list[float]:
    """One step with a scaler on sharded gradients, beside the same step on one process."""
    mesh = models.mesh_1d()
    model = models.fsdp(models.build(), mesh)
    alone = models.build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fold)
    other = torch.optim.AdamW(alone.parameters(), lr=1e-2)
    made = {"GradScaler": lambda: GradScaler("cpu", init_scale=512.0)}
    made["ShardedGradScaler"] = lambda: ShardedGradScaler("cpu", init_scale=512.0)
    scaler, reference = made[kind](), GradScaler("cpu", init_scale=512.0)
    for m, s in ((model, scaler), (alone, reference)):
        m.zero_grad()
        s.scale(m(batch()).square().sum()).backward()
    if poison is not None:
        alone[1].up.weight.grad[0, 0] = math.inf
        if dist.get_rank() == poison:
            model[1].up.weight.grad._local_tensor[0, 0] = math.inf
    options = {"optimizer": optimizer, "fold": True} if fold else {}
    stats = gradkern.GradClipper(model, 0.5, **options).clip_(scaler=scaler, optimizer=optimizer)
    reference.unscale_(other)
    total = nn.utils.clip_grad_norm_(alone.parameters(), 0.5)
    if poison is None:
        assert float(stats.total_norm) == pytest.approx(float(total), rel=1e-5)
    before = [p.detach().clone() for p in alone.parameters()]
    for s, o in ((scaler, optimizer), (reference, other)):
        s.step(o)
        s.update()
    assert scaler.get_scale() == reference.get_scale() == (512.0 if poison is None else 256.0)
    for p, q, b in zip(model.parameters(), alone.parameters(), before):
        torch.testing.assert_close(models.local_value(p), models.part_of(q, p), rtol=1e-4, atol=2e-5)
        assert torch.equal(q, b) == (poison is not None)
    return [float(stats.total_norm), scaler.get_scale()]


@pytest.mark.parametrize("poison", [None, 1])
@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("kind", ["GradScaler", "ShardedGradScaler"])
def test_scalers_on_sharded_gradients(ranks, kind, fold, poison):
    answers = ranks(2)(scaler_job, kind=kind, fold=fold, poison=poison)
    assert all(str(a) == str(answers[0]) for a in answers)


def fold_job(skip: bool) -> None:
    """The coefficient in the optimizer's step, for several steps, beside a clip of one process."""
    model, alone = models.as_fsdp_tp(models.build()), models.build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    other = torch.optim.AdamW(alone.parameters(), lr=1e-2)
    clipper = gradkern.GradClipper(
        model, 0.5, optimizer=optimizer, fold=True, on_nonfinite="skip" if skip else "propagate"
    )
    for step in range(3):
        gradients = models.full_gradients(alone, seed=step)
        models.fill(model, gradients)
        models.fill(alone, gradients)
        if skip and step == 1 and dist.get_rank() == 3:
            model[0].down.weight.grad._local_tensor[0] = math.nan
        stats = clipper.clip_()
        optimizer.step()
        if skip and step == 1:
            assert bool(stats.skip_step)
            continue
        nn.utils.clip_grad_norm_(alone.parameters(), 0.5)
        other.step()
        for p, q in zip(model.parameters(), alone.parameters()):
            torch.testing.assert_close(models.local_value(p), models.part_of(q, p), rtol=1e-5, atol=1e-6)
    assert not hasattr(optimizer, "grad_scale")


@pytest.mark.parametrize("skip", [False, True])
def test_a_fold_on_sharded_gradients(ranks, skip):
    ranks(4)(fold_job, skip=skip)


def bf16_job() -> None:
    """bfloat16 compute with float32 masters: gradients arrive reduced, in the parameters' type."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = models.fsdp(models.build(), models.mesh_1d(), mp_policy=policy)
    backward(model, batch())
    expected = models.reference(whole_gradients(model))
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    close(gradkern.clip_grad_norm_(model.parameters(), expected / 2), expected)


def test_bfloat16_compute_with_float32_masters(ranks):
    ranks(2)(bf16_job)


def offload_job() -> None:
    model = models.fsdp(models.build(), models.mesh_1d(), offload_policy=CPUOffloadPolicy(pin_memory=False))
    backward(model, batch())
    expected = models.reference(whole_gradients(model))
    assert {p.grad._local_tensor.device.type for p in model.parameters()} == {"cpu"}
    close(gradkern.GradClipper(model, math.inf).clip_().total_norm, expected)
    close(gradkern.clip_grad_norm_(model.parameters(), expected / 2), expected)
    assert models.reference(whole_gradients(model)) == pytest.approx(expected / 2, rel=1e-5)


def test_offloaded_parameters(ranks):
    ranks(2)(offload_job)


def monitor_job(folder: str) -> None:
    """`record` without statistics measures by itself: every rank calls it, the first one writes."""
    model = models.as_fsdp(models.build())
    models.fill(model, models.full_gradients(models.build()))
    monitor = gradkern.GradMonitor(model, run_dir=folder)
    for _ in range(2):
        monitor.record(loss=1.0)
    monitor.close()


def test_one_rank_writes_the_history(ranks):
    folder = Path(tempfile.mkdtemp(prefix="gradkern-monitor-")) / "run"
    ranks(2)(monitor_job, folder=str(folder))
    expected = models.reference(models.full_gradients(models.build()))
    with gradkern.History.open(folder) as history:
        assert history.total_norm.tolist() == pytest.approx([expected] * 2, rel=3e-7)
        assert list(history.names) == [n for n, _ in models.build().named_parameters()]
