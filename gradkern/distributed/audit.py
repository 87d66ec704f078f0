"""`explain_norm`: how each parameter's gradient enters the total norm, and on which mesh."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.distributed.tensor import DTensor

from gradkern.distributed.placements import counted_elements
from gradkern.distributed.plan import describe_mesh
from gradkern.params.arguments import check_group, check_selections
from gradkern.params.names import NamedParameters, resolve

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class CountedParameter:
    """How the gradient of one parameter enters the norm."""

    name: str
    counted_as: str
    """"shard", "replica", "partial", "plain", "plain in process_group", "elsewhere", "repeat",
    "no gradient"."""
    mesh: str
    """Mesh and placements, "(dp=2, tp=2) Shard(dim=0), Replicate()"; "" for a plain tensor."""
    numel: int
    """Elements of the parameter; over all ranks for a DTensor."""
    counted_here: int
    """Elements that this rank counts."""


@dataclass(frozen=True)
class NormAudit:
    """How the gradient of every parameter enters the norm. ``print(audit)`` shows a table."""

    parameters: tuple[CountedParameter, ...]

    @property
    def counted_here(self) -> int:
        """Elements that this rank counts. Over all ranks of a mesh they add up to the elements of its
        parameters."""
        return sum(p.counted_here for p in self.parameters)

    def __str__(self) -> str:
        head = ("name", "counted as", "numel", "here", "mesh and placements")
        rows = [(p.name, p.counted_as, str(p.numel), str(p.counted_here), p.mesh) for p in self.parameters]
        widths = [max(len(r[i]) for r in [head, *rows]) for i in range(4)]
        lines = ["  ".join([*(c.ljust(w) for c, w in zip(r, widths)), r[4]]).rstrip() for r in [head, *rows]]
        return "\n".join([*lines, f"{self.counted_here} elements are counted on this rank"])


def _describe(tensor: DTensor) -> str:
    return f"{describe_mesh(tensor.device_mesh)} " + ", ".join(repr(p) for p in tensor.placements)


def _counted(name: str, tensor: DTensor) -> CountedParameter:
    partial = any(p.is_partial() for p in tensor.placements)
    replica = all(p.is_replicate() for p in tensor.placements)
    kind = "partial" if partial else "replica" if replica else "shard"
    return CountedParameter(name, kind, _describe(tensor), tensor.numel(), counted_elements(tensor))


def explain_norm(
    params: NamedParameters,
    *,
    process_group: ProcessGroup | None = None,
    in_process_group: Callable[[str], bool] | None = None,
    counted_elsewhere: Callable[[str], bool] | None = None,
) -> NormAudit:
    """Explain how the gradient of every parameter enters the total norm on this rank.

    Args:
        params: a Module, (name, Parameter) pairs or Parameters, with their gradients.
        process_group, in_process_group, counted_elsewhere: see `GradClipper`.

    Returns:
        A `NormAudit`. Each rank counts its shard of a sharded gradient. A replicated gradient is counted at
        coordinate 0 of the mesh dimensions that replicate it. The terms of a partial gradient are added
        first, and each rank counts a slice of the sum. A plain tensor is counted on every rank and not added
        over ranks, unless it belongs to the process group.

    Raises:
        TypeError, ValueError: an invalid argument.

    Notes:
        No collective and no synchronisation.
    """
    check_group("explain_norm", "process_group", process_group)
    check_selections("explain_norm", process_group, in_process_group, counted_elsewhere)
    names, tensors = resolve("explain_norm", params)
    seen: set[int] = set()
    rows = []
    for name, p in zip(names, tensors):
        carrier = p if p.grad is None else p.grad
        described = _describe(carrier) if isinstance(carrier, DTensor) else ""
        if id(p) in seen:
            rows.append(CountedParameter(name, "repeat", described, p.numel(), 0))
        elif p.grad is None:
            rows.append(CountedParameter(name, "no gradient", described, p.numel(), 0))
        elif counted_elsewhere is not None and counted_elsewhere(name):
            rows.append(CountedParameter(name, "elsewhere", described, p.numel(), 0))
        elif isinstance(p.grad, DTensor):
            rows.append(_counted(name, p.grad))
        else:
            inside = process_group is not None and (in_process_group is None or in_process_group(name))
            kind = "plain in process_group" if inside else "plain"
            rows.append(CountedParameter(name, kind, "", p.numel(), p.grad.numel()))
        seen.add(id(p))
    return NormAudit(tuple(rows))
