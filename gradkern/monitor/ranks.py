"""Agreement of the ranks of a distributed program on the step, the folder and the findings of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gradkern.diagnosis.finding import Finding
from gradkern.kernels.dtensors import is_distributed


def agree_on_step(params: Sequence[Tensor], step: int, failed: bool) -> int:
    """The last step of the run, the same on every rank: one small collective over the default group.

    `record` measures a sharded model with collectives at every `every`-th step, so ranks that count
    differently would wait for each other. Without DTensors nothing is sent.

    Args:
        params: parameters of the model.
        step: last step in this rank's run folder, 0 if it has none.
        failed: whether this rank could not open its run folder.

    Raises:
        RuntimeError: another rank could not open its run folder.
    """
    if not is_distributed(params):
        return step
    import torch.distributed as dist

    from gradkern.distributed.groups import group_device

    everyone = dist.distributed_c10d._get_default_group()
    found = torch.tensor([step, int(failed)], device=group_device(everyone))
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    last, failures = found.tolist()
    if failures and not failed:
        raise RuntimeError(
            "[GradMonitor] run_dir: another rank could not open its run folder; its error says why"
        )
    return int(last)


def made_by_rank_0(make: Callable[[], Path]) -> Path:
    """Call `make` on rank 0 and return its result on every rank: one broadcast over the default group.

    Raises:
        RuntimeError: `make` failed on rank 0, where its own error is raised.
    """
    import torch.distributed as dist

    name: list[str | None] = [None]
    try:
        if dist.get_rank() == 0:
            name = [str(make())]
    finally:
        dist.broadcast_object_list(name)
    if name[0] is None:
        raise RuntimeError("[GradMonitor] run_dir: rank 0 could not make the run folder; its error says why")
    return Path(name[0])


def first_finding(own: Finding | None) -> Finding | None:
    """The finding of the first rank that has one, on every rank: one small collective over the default
    group."""
    import torch.distributed as dist

    found: list[Finding | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return next((finding for finding in found if finding is not None), None)


def over_several_ranks() -> bool:
    """Whether this process is one of several ranks."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
