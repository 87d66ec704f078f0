"""Small models, partitioned in every way the tests cover, with the same gradients on one process.

Gradients are made, not computed: `fill` writes the rank's part of one full random gradient per parameter,
so that the float64 reference over the full gradients is exact for every partition.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module


class Block(nn.Module):
    """Sizes that the number of ranks does not divide, and one parameter that is smaller than it."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x)))) * self.gain


def build(blocks: int = 3, width: int = 10, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return copy.deepcopy(_built(blocks, width, dtype))


@functools.cache
def _built(blocks: int, width: int, dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(7)
    return nn.Sequential(*(Block(width) for _ in range(blocks))).to(dtype)


TP_PLAN = {"up": ColwiseParallel(), "down": RowwiseParallel()}


def fsdp(model: nn.Sequential, mesh: DeviceMesh | None = None, **options: object) -> nn.Sequential:
    for block in model:
        fully_shard(block, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


# One mesh for all jobs of a pool: each would open groups of its own.
@functools.cache
def mesh_1d(name: str = "dp") -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=(name,))


@functools.cache
def mesh_2d(*names: str) -> DeviceMesh:
    return init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=names)


def tensor_parallel(model: nn.Sequential, mesh: DeviceMesh) -> nn.Sequential:
    for block in model:
        parallelize_module(block, mesh, TP_PLAN)
    return model


def as_fsdp(model: nn.Sequential) -> nn.Sequential:
    return fsdp(model, mesh_1d())


def as_some_blocks(model: nn.Sequential) -> nn.Sequential:
    fully_shard(model[1], mesh=mesh_1d())
    return model


def as_tp(model: nn.Sequential) -> nn.Sequential:
    return tensor_parallel(model, mesh_1d("tp"))  # norm and gain stay plain tensors


def as_fsdp_tp(model: nn.Sequential) -> nn.Sequential:
    mesh = mesh_2d("dp", "tp")
    return fsdp(tensor_parallel(model, mesh["tp"]), mesh["dp"])


def as_hsdp(model: nn.Sequential) -> nn.Sequential:
    return fsdp(model, mesh_2d("replicate", "shard"))


def as_plain(model: nn.Sequential) -> nn.Sequential:
    return model


def as_two_meshes(model: nn.Sequential) -> nn.Sequential:
    mesh = mesh_2d("a", "b")
    fsdp_of = (mesh["a"], mesh["b"], mesh_1d("all"))
    for block, sub in zip(model, fsdp_of):
        fully_shard(block, mesh=sub)
    return model


def as_reversed_meshes(model: nn.Sequential) -> nn.Sequential:
    """Placements by hand: Replicate, Shard(1), and both on one mesh."""
    mesh = mesh_1d()
    for index, (name, p) in enumerate(list(model.named_parameters())):
        placement = Replicate() if index % 3 == 0 else Shard(min(1, p.ndim - 1) if index % 3 == 1 else 0)
        owner = model.get_submodule(name.rpartition(".")[0])
        placed = nn.Parameter(distribute_tensor(p, mesh, [placement]))
        owner.register_parameter(name.rpartition(".")[2], placed)
    return model


PARTITIONS: dict[str, Callable[[nn.Sequential], nn.Sequential]] = {
    "fsdp": as_fsdp,
    "some blocks": as_some_blocks,
    "tp": as_tp,
    "fsdp+tp": as_fsdp_tp,
    "hsdp": as_hsdp,
    "two meshes": as_two_meshes,
    "by hand": as_reversed_meshes,
    "ddp": as_plain,
}


def full_gradients(model: nn.Module, scale: float = 1.0, seed: int = 3) -> dict[str, Tensor]:
    """One gradient per parameter, the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(p.shape, generator=generator, dtype=torch.float64) * scale).to(p.dtype)
        for name, p in model.named_parameters()
    }


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """The elements of `whole` that this rank holds of `like`, as a plain tensor."""
    if not isinstance(like, DTensor):
        return whole
    return whole.flatten()[_elements(like.device_mesh, like.placements, whole.shape)]


@functools.cache
def _elements(mesh: DeviceMesh, placements: tuple[Placement, ...], shape: torch.Size) -> Tensor:
    """Where in a whole tensor the elements of this rank's part are."""
    numbers = DTensor.from_local(torch.arange(shape.numel()).view(shape), mesh, [Replicate()] * mesh.ndim)
    return numbers.redistribute(placements=placements).to_local()


def local_part(full: Tensor, like: Tensor) -> Tensor:
    """The part of `full` that belongs where `like` is."""
    if not isinstance(like, DTensor):
        return full.clone()
    return DTensor.from_local(
        part_of(full, like), like.device_mesh, like.placements, shape=full.shape, stride=full.stride()
    )


def local_value(t: Tensor) -> Tensor:
    return t.to_local() if isinstance(t, DTensor) else t


def fill(model: nn.Module, gradients: dict[str, Tensor]) -> None:
    for name, p in model.named_parameters():
        p.grad = local_part(gradients[name], p)


def reference(gradients: dict[str, Tensor], norm_type: float = 2.0) -> float:
    """The norm in float64 over all gradients; compensated, whatever their magnitude."""
    values = torch.cat([g.detach().double().abs().flatten() for g in gradients.values()])
    largest = float(values.max())
    if math.isinf(norm_type) or largest == 0:
        return float(values.max() if norm_type > 0 else values.min())
    if norm_type == 0:
        return float((values != 0).sum())
    terms = (values / largest) ** norm_type
    return largest * math.fsum(terms.tolist()) ** (1 / norm_type)


def full_value(t: Tensor) -> Tensor:
    return t.full_tensor() if isinstance(t, DTensor) else t


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors from the parts that ranks hold, in one exchange; `full_tensor` needs one per tensor."""
    here = {name: t for name, t in tensors.items() if isinstance(t, DTensor)}
    if not here:
        return {name: t.clone() for name, t in tensors.items()}
    mine = {
        name: (_elements(t.device_mesh, t.placements, t.shape).flatten(), t.to_local().flatten())
        for name, t in here.items()
    }
    parts: list[dict[str, tuple[Tensor, Tensor]]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, mine)
    found = {name: torch.full(t.shape, math.nan, dtype=t.dtype) for name, t in tensors.items()}
    for part in parts:
        for name, (elements, values) in part.items():
            found[name].view(-1)[elements] = values
    return found | {name: t.clone() for name, t in tensors.items() if name not in here}


__all__ = ["MixedPrecisionPolicy", "Partial"]
