"""Which elements a rank counts.

Along each mesh dimension the local tensor of a DTensor is a part of it (Shard, _StridedShard), a replica
(Replicate) or a term of a sum (Partial). Parts are counted by every rank, replicas only at coordinate 0 of
the dimension. Terms are added before they are measured.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import Placement

from gradkern._util import moved
from gradkern.distributed.groups import group_device, mesh_device, mesh_groups, mesh_key


@dataclass
class Domain:
    """The positions of a list whose contributions are added over the same ranks."""

    kind: str
    """"mesh" (DTensors), "group" (plain tensors of a named group) or "local" (plain tensors)."""
    groups: tuple[dist.ProcessGroup, ...]
    device: torch.device
    """The device on which the collective runs, also if gradients are offloaded to the CPU."""
    mesh: DeviceMesh | None = None
    positions: list[int] = dataclasses.field(default_factory=list)


@dataclass
class Domains:
    """How a list of gradients is counted. Domains are in the order of their collectives."""

    each: list[Domain]
    single_mesh: DeviceMesh | None
    """The mesh of all tensors if they share one and no group is given; the norm is then a DTensor."""
    pp_group: dist.ProcessGroup | None


def domains_of(
    carriers: Sequence[Tensor | None],
    process_group: dist.ProcessGroup | None = None,
    pp_group: dist.ProcessGroup | None = None,
    *,
    prefer_world: bool = False,
    in_group: Callable[[int], bool] | None = None,
) -> Domains:
    """Sort positions into domains. The result is the same on every rank, with or without gradients.

    Args:
        carriers: for each position the gradient, or the parameter if it has none; None for a position that
            is not counted.
        process_group: ranks that hold different parts of the plain tensors.
        pp_group: ranks that hold different parts of the model (pipeline stages).
        in_group: whether the plain tensor at a position is part of `process_group` (default: all).
    """
    meshes: dict[DeviceMesh, Domain] = {}
    known: dict[int, Domain] = {}  # by id: hashing a mesh takes a microsecond
    local = Domain("local", (), torch.device("cpu"))
    group = None if process_group is None else Domain("group", (process_group,), group_device(process_group))
    for position, tensor in enumerate(carriers):
        if tensor is None:
            continue
        if isinstance(tensor, DTensor):
            mesh = tensor._spec.mesh
            domain = known.get(id(mesh))
            if domain is None:
                domain = known[id(mesh)] = meshes.setdefault(mesh, _mesh_domain(mesh, prefer_world))
            domain.positions.append(position)
        elif group is not None and (in_group is None or in_group(position)):
            group.positions.append(position)
        else:
            if not local.positions:
                local.device = tensor.device
            local.positions.append(position)
    domains = list(meshes.values())
    if len(domains) > 1:
        domains = [meshes[mesh] for mesh in sorted(meshes, key=mesh_key)]
    alone = len(domains) == 1 and not local.positions and group is None and pp_group is None
    single = domains[0].mesh if alone else None
    domains += [] if group is None else [group]
    domains += [local] if local.positions else []
    return Domains(domains, single, pp_group)


def _mesh_domain(mesh: DeviceMesh, prefer_world: bool) -> Domain:
    groups = mesh_groups(mesh, prefer_world=prefer_world)
    return Domain("mesh", groups, mesh_device(mesh.device_type), mesh)


def counts_here(mesh: DeviceMesh, placements: Sequence[Placement]) -> bool:
    """Whether this rank counts its local shard, which is not a replica of an earlier rank's."""
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return False
    return not any(p.is_replicate() and c != 0 for p, c in zip(placements, coordinate))


def local_shard(tensor: Tensor) -> Tensor:
    """The tensor that this rank holds, to which in-place operations write."""
    if not isinstance(tensor, DTensor):
        return tensor
    local: Tensor = tensor._local_tensor
    wait = getattr(local, "wait", None)  # the result of an asynchronous collective
    return local if wait is None else wait()


def resolve_partial(grad: DTensor) -> DTensor:
    """Add the terms of a Partial gradient. A collective over the mesh.

    Each rank gets a slice of the sum, so that no full tensor is built, unless the gradient is 0-d.
    """
    return grad.redistribute(placements=_added_placements(grad))


def counted_elements(grad: DTensor) -> int:
    """The number of elements that this rank counts after terms are added. No collective.

    The sizes of hand-made shards may differ from those that torch would have chosen.
    """
    placements = _added_placements(grad)
    if not counts_here(grad.device_mesh, placements):
        return 0
    if not any(p.is_partial() for p in grad.placements):
        return grad._local_tensor.numel()
    shape, _ = compute_local_shape_and_global_offset(grad.shape, grad.device_mesh, placements)
    return math.prod(shape)


def _added_placements(grad: DTensor) -> list[Placement]:
    target: Placement = Shard(0) if grad.ndim else Replicate()
    return [target if p.is_partial() else p for p in grad.placements]


def written_shards(grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The tensor of each gradient that this rank scales, replicas included."""
    return [None if g is None else local_shard(g) for g in grads]


if not TYPE_CHECKING:
    __getattr__ = moved.forward(__name__)  # names of 0.1
