"""The process groups to reduce over for a mesh, and the order in which meshes reduce."""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh


def mesh_key(mesh: DeviceMesh) -> tuple[Any, ...]:
    """A key that is the same on every rank of a mesh and differs between meshes.

    Ranks reduce over several meshes in the order of these keys. Any order on which all ranks agree avoids
    deadlocks: every member of the first pending reduction in that order waits for it.
    """
    key = _KEYS.get(mesh)
    if key is None:  # listing the ranks of a mesh takes half a millisecond
        ranks = mesh.mesh
        key = tuple(ranks.flatten().tolist()), tuple(ranks.shape), tuple(mesh.mesh_dim_names or ())
        _KEYS[mesh] = key
    return key


_KEYS: weakref.WeakKeyDictionary[DeviceMesh, tuple[Any, ...]] = weakref.WeakKeyDictionary()


def mesh_groups(mesh: DeviceMesh, *, prefer_world: bool) -> tuple[dist.ProcessGroup, ...]:
    """The groups to reduce over, one after the other, so that every rank of `mesh` has the result.

    These are the groups of all dimensions with more than one rank, which torch's own DTensor reductions use
    too. No group is created.

    Args:
        prefer_world: for a mesh of all ranks use the default group: one reduction instead of several.
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
    """The device of tensors for a collective of `group`: the CPU or the current accelerator."""
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
