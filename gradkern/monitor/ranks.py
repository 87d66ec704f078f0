"""What the ranks of a sharded model have to agree on before they record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gradkern.kernels.dtensors import is_distributed


def agree_on_step(params: Sequence[Tensor], step: int, failed: bool) -> int:
    """The last step of the run, on every rank: one small collective over the default group.

    `record` measures a sharded model by collectives, every `every` steps: ranks that counted
    differently would wait for one another. A model without DTensors needs none of this, and nothing
    is sent then.

    Args:
        params: of the model.
        step: what this rank found in its run folder, 0 if it has none.
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
            "[GradMonitor] expected every rank to open its run folder, another could not; its error says why"
        )
    return int(last)


def made_by_rank_0(make: Callable[[], Path]) -> Path:
    """What `make` returns on rank 0, on every rank: one broadcast over the default group.

    Raises:
        RuntimeError: `make` failed on rank 0, which raises what `make` raised.
    """
    import torch.distributed as dist

    name: list[str | None] = [None]
    try:
        if dist.get_rank() == 0:
            name = [str(make())]
    finally:
        dist.broadcast_object_list(name)
    if name[0] is None:
        raise RuntimeError(
            "[GradMonitor] expected rank 0 to make the run folder, it could not; its error says why"
        )
    return Path(name[0])


def over_several_ranks() -> bool:
    """Whether this process is one of several ranks."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
