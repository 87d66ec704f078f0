"""Which process groups a mesh's ranks talk over, and in which order meshes take their turn."""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh


def mesh_key(mesh: DeviceMesh) -> tuple[Any, ...]:
    """The same on every rank of a mesh, and different for different meshes.

    Ranks that share several meshes reduce over them in the order of these keys. Any order that all
    ranks of the world agree on is free of deadlock: of the reductions still to come, the first in
    that order has every member waiting for it.
    """
    key = _KEYS.get(mesh)
    if key is None:  # the ranks of a mesh cost half a millisecond to list
        ranks = mesh.mesh
        key = tuple(ranks.flatten().tolist()), tuple(ranks.shape), tuple(mesh.mesh_dim_names or ())
        _KEYS[mesh] = key
    return key


_KEYS: weakref.WeakKeyDictionary[DeviceMesh, tuple[Any, ...]] = weakref.WeakKeyDictionary()


def mesh_groups(mesh: DeviceMesh, *, prefer_world: bool) -> tuple[dist.ProcessGroup, ...]:
    """Groups to reduce over, one after the other, so that every rank of `mesh` has the result.

    One group for each dimension with more than one rank, as torch's own DTensor reductions use. A
    mesh over all ranks needs the default group only: one reduction in place of several
    (`prefer_world`). No group is created here.
    """
    if mesh.get_coordinate() is None:  # this rank is not part of the mesh
        return ()
    if prefer_world and mesh.ndim > 1 and mesh.size() == dist.get_world_size():
        world = dist.group.WORLD
        if world is not None and _serves(world, mesh.device_type):
            return (world,)
    return tuple(mesh.get_group(d) for d in range(mesh.ndim) if mesh.size(d) > 1)


def _serves(group: dist.ProcessGroup, device_type: str) -> bool:
    return any(d.type == device_type for d in group._device_types)


def group_device(group: dist.ProcessGroup) -> torch.device:
    """Where tensors have to be for a collective of `group`: the current accelerator, or the CPU."""
    types = [d.type for d in group._device_types]
    if "cpu" in types:
        return torch.device("cpu")
    return mesh_device(types[0])


def mesh_device(device_type: str) -> torch.device:
    """The current device of a type."""
    if device_type == "cpu":
        return torch.device("cpu")
    index = torch.get_device_module(device_type).current_device()
    return torch.device(device_type, index)
