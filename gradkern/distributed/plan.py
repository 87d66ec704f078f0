"""`RankPlan`: how ranks share a list of parameters, derived once and checked at each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from gradkern._util import moved
from gradkern.distributed.agreement import differing, differing_settings
from gradkern.distributed.placements import Domains, counts_here, domains_of, local_shard

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class RankPlan:
    """Domains, ownership and row order, from the parameters and the placements of their gradients.

    Args:
        params: the parameters, or the same list as `grads`.
        grads: a gradient or None for each parameter.
        process_group, pp_group, in_group, prefer_world: see `domains_of`.
        elsewhere: whether another rank counts the parameter at a position. This rank scales it nevertheless.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        *,
        process_group: dist.ProcessGroup | None = None,
        pp_group: dist.ProcessGroup | None = None,
        in_group: Callable[[int], bool] | None = None,
        prefer_world: bool = False,
        elsewhere: Callable[[int], bool] | None = None,
    ) -> None:
        # Frozen parameters without a gradient are left out; trainable ones take part on every rank.
        self._carriers = [
            g if g is not None else p if p.requires_grad else None for p, g in zip(params, grads)
        ]
        self.domains: Domains = domains_of(
            self._carriers, process_group, pp_group, prefer_world=prefer_world, in_group=in_group
        )
        present = [c for c in self._carriers if c is not None]
        self.double = any(c.dtype in (torch.float64, torch.complex128) for c in present)
        self._seen = [None if c is None else _signature(c) for c in self._carriers]
        self.counted: list[bool] = [True] * len(self._seen)
        self.partial: list[int] = []
        self._ownership()
        if elsewhere is not None:
            self.counted = [c and not elsewhere(i) for i, c in enumerate(self.counted)]
        self._carriers = []  # do not keep gradients alive
        order = [i for d in self.domains.each for i in d.positions]
        self.missing = [i for i, c in enumerate(self._seen) if c is None]
        place = sorted(range(len(self._seen)), key=[*order, *self.missing].__getitem__)
        self.place = None if place == list(range(len(place))) else tuple(place)

    def _ownership(self) -> None:
        """Find the positions that this rank counts, and the Partial ones."""
        verdicts: dict[Any, tuple[bool, bool]] = {}
        for position, tensor in enumerate(self._carriers):
            if not isinstance(tensor, DTensor):
                continue
            spec = tensor._spec
            key = id(spec.mesh), spec.placements
            verdict = verdicts.get(key)
            if verdict is None:
                here = counts_here(spec.mesh, spec.placements)
                verdict = verdicts[key] = here, any(p.is_partial() for p in spec.placements)
            self.counted[position] = verdict[0]
            if verdict[1]:
                self.partial.append(position)

    def held(self, params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Tensor | None] | None:
        """The tensor that this rank holds of each gradient; None if the plan no longer fits."""
        if len(params) != len(self._seen):
            return None
        local: list[Tensor | None] = []
        for p, g, seen in zip(params, grads, self._seen):
            tensor = p if g is None else g
            if seen is None:
                if g is not None or p.requires_grad:
                    return None
                local.append(None)
                continue
            spec, where = seen
            if tensor.dtype is not where[0]:
                return None
            if spec is None:
                if isinstance(tensor, DTensor) or tensor.device != where[1]:
                    return None
                local.append(g)
                continue
            if not isinstance(tensor, DTensor):
                return None
            own = tensor._spec
            if own is not spec and (own.placements != spec.placements or own.mesh != spec.mesh):
                return None
            shard = None if g is None else tensor._local_tensor
            local.append(shard if shard is None or type(shard) is Tensor else local_shard(tensor))
        return local

    def agree(
        self,
        operation: str,
        names: Sequence[str],
        params: Sequence[Tensor],
        settings: Mapping[str, object],
        group_of: Mapping[int, str],
    ) -> None:
        """Check that all ranks of every mesh have the same rows in the same named groups, and the same
        settings. Two collectives over each mesh.

        Raises:
            ValueError: they differ. Raised on every rank of the mesh.
        """
        wrong: str | None = None  # raised at the end: ranks of other meshes wait for this one
        for domain in self.domains.each:
            if domain.mesh is None or not domain.groups:
                continue
            rows = [
                (names[i], tuple(params[i].shape), str(_placements(params[i])), group_of.get(i))
                for i in domain.positions
            ]
            if differing([(list(settings), rows)], domain.groups):
                wrong = wrong or _disagreement(operation, domain.mesh, [row[0] for row in rows])
                continue
            where = f"the mesh {describe_mesh(domain.mesh)}"
            other = differing_settings(operation, settings, domain.groups, where)
            wrong = wrong or other
        if wrong is not None:
            raise ValueError(wrong)


def _signature(tensor: Tensor) -> tuple[Any, tuple[torch.dtype, torch.device | None]]:
    if isinstance(tensor, DTensor):
        return tensor._spec, (tensor.dtype, None)
    return None, (tensor.dtype, tensor.device)


def _placements(tensor: Tensor) -> Any:
    return tensor.placements if isinstance(tensor, DTensor) else None


def describe_mesh(mesh: DeviceMesh) -> str:
    """ "(dp=2, tp=2)" """
    names = mesh.mesh_dim_names or tuple(f"dim{d}" for d in range(mesh.ndim))
    return "(" + ", ".join(f"{name}={mesh.size(d)}" for d, name in enumerate(names)) + ")"


def _disagreement(operation: str, mesh: DeviceMesh, names: Sequence[str]) -> str:
    shown = ", ".join(repr(n) for n in names[:3]) + (", …" if len(names) > 3 else "")
    return (
        f"[{operation}] params: expected the same parameters (names, shapes, placements, in the same order) "
        f"in the same groups on every rank of the mesh {describe_mesh(mesh)}, got different ones; this rank "
        f"has {len(names)}: {shown}"
    )


if not TYPE_CHECKING:
    __getattr__ = moved.forward(__name__)  # names of 0.1
