"""`AGC`: adaptive gradient clipping relative to the norms of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradkern.clipping.policies.base import ElementPolicy
from gradkern.clipping.policies.checks import at_least
from gradkern.clipping.policies.native import NativePolicy
from gradkern.clipping.route import written_shards
from gradkern.kernels.backend import C
from gradkern.kernels.dtensors import is_dtensor
from gradkern.kernels.kinds import check_readable, naming

#: The dimensions that a unit's norm is taken over, by the number of dimensions of the parameter. All but the
#: first where nothing is listed.
_UNITS: dict[str, dict[int, tuple[int, ...]]] = {
    "timm": {},
    "pytorch_optimizer": {3: (1,)},
    "optax": {2: (0,), 3: (0,), 4: (0, 1, 2), 5: (0, 1, 2, 3)},
}


class AGC(ElementPolicy):
    """Adaptive gradient clipping: limit the gradient norm of each unit relative to the norm of its weights.

    ``g *= max_norm / max(‖g‖, 1e-6)`` where ``‖g‖ >= max_norm``, with
    ``max_norm = clip_factor * max(‖w‖, eps)``. Source: Brock et al., "High-performance large-scale image
    recognition without normalization", 2021.

    Args:
        clip_factor: λ of the paper, not negative.
        eps: lower bound for the norm of a unit's weights.
        units: which dimensions the norm of a unit is taken over. Packages differ:

            - "timm": all but the first, so that a unit is one output.
            - "pytorch_optimizer": as "timm", but only the second for a tensor of three dimensions.
            - "optax": all but the last, for weights whose input dimensions come first. Only the first for a
              tensor of three dimensions.

            A tensor of one dimension or none is one unit.

    Raises:
        TypeError, ValueError: an invalid argument.

    Notes:
        The paper does not clip the last layer. Put that into a group of its own with None as its policy.

        If parameters are sharded within units, the squared norms of these units are summed with an
        all-reduce.
    """

    def __init__(self, clip_factor: float = 0.01, eps: float = 1e-3, *, units: str = "timm") -> None:
        if units not in _UNITS:
            raise ValueError(f"[AGC] units: expected one of {', '.join(_UNITS)}, got {units!r}")
        self.clip_factor = at_least("AGC", "clip_factor", clip_factor, 0.0)
        self.eps = at_least("AGC", "eps", eps, 0.0)
        self.units = units

    def native(self, names: tuple[str, ...]) -> NativePolicy | None:
        return NativePolicy("agc", (self.clip_factor, self.eps)) if self.units == "timm" else None

    def check(self, operation: str, params: Sequence[Tensor], names: Sequence[str]) -> None:
        for param, name in zip(params, names):
            grad: Any = param.grad
            if grad is None:
                continue
            where = f"[{operation}] '{name}'"
            if is_dtensor(grad) and any(p.is_partial() for p in grad.placements):
                raise ValueError(
                    f"{where}: expected a gradient that is reduced for the policy AGC, got placements "
                    f"{tuple(grad.placements)}; call .redistribute() on it first"
                )
            check_readable(where, grad)
            if grad.layout not in (torch.strided, torch.sparse_coo) or grad.is_nested:
                raise TypeError(
                    f"{where}: expected a strided or sparse COO gradient for the policy AGC, got layout "
                    f"{grad.layout}"
                )
            if grad.layout is torch.strided and any(
                n > 1 and step == 0 for n, step in zip(grad.shape, grad.stride())
            ):
                raise ValueError(
                    f"{where}: expected a gradient whose elements share no memory for the policy AGC, got an "
                    "expanded one; call .contiguous() on it"
                )

    def apply_(
        self,
        operation: str,
        params: Sequence[Tensor],
        shards: Sequence[Tensor | None] | None,
        names: Sequence[str],
    ) -> Tensor | None:
        sharded = any(is_dtensor(p) for p in params)
        if self.units == "timm" and not sharded:
            ratios = C.agc_(params, shards, self.clip_factor, self.eps)
            if ratios is not None:
                return ratios
        if shards is None:
            shards = written_shards([p.grad for p in params])
        units = [_Unit(self, operation, p, g, n) for p, g, n in zip(params, shards, names)]
        if sharded:
            _add_over_ranks([u for u in units if u.cut])
        for unit in units:
            unit.scale_(self.clip_factor, self.eps)
        return _ratios(units)

    def reduced(self, ndim: int) -> tuple[int, ...]:
        """The dimensions that a unit's norm is taken over."""
        if ndim <= 1:
            return tuple(range(ndim))
        return _UNITS[self.units].get(ndim, tuple(range(1, ndim)))


class _Unit:
    """The units of one parameter: squared norms of weights and gradients, float64."""

    def __init__(self, policy: AGC, operation: str, param: Any, grad: Tensor | None, name: str) -> None:
        dims = policy.reduced(param.ndim)
        self.grad = grad
        self.mesh: Any = None
        self.placements: Sequence[Any] = ()
        self.cut: tuple[int, ...] = ()
        if is_dtensor(param):
            self.mesh, self.placements = param.device_mesh, param.placements
            self.cut = tuple(i for i, p in enumerate(self.placements) if _splits(p) and p.dim in dims)
        local = param._local_tensor if is_dtensor(param) else param
        with naming(f"[{operation}] '{name}'", local):
            self.weights = _squares(local, dims)
            self.grads = torch.zeros_like(self.weights) if grad is None else _squares(grad, dims)
        self.own = self.grads  # this rank's part of them
        self.factor = torch.ones_like(self.weights)

    def scale_(self, clip_factor: float, eps: float) -> None:
        if self.grad is None or not self.grad.numel():
            return
        norm, largest = self.grads.sqrt(), self.weights.sqrt().clamp(min=eps) * clip_factor
        self.factor = torch.where(norm < largest, 1.0, largest / norm.clamp(min=1e-6))
        if not (self.factor.is_cpu and bool((self.factor == 1).all())):
            wide = torch.complex128 if self.grad.is_complex() else torch.float64
            self.grad.copy_(self.grad.to(wide) * self.factor)


def _splits(placement: Any) -> bool:
    """Whether ranks hold different parts. `is_shard` is False for torch's strided shards."""
    return not placement.is_replicate() and not placement.is_partial()


def _squares(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The sum of squares of each unit, with the reduced dimensions kept."""
    dense = x.detach().to_dense() if x.is_sparse else x.detach()
    real = dense.abs().double() if dense.is_complex() else dense.double()
    return real.square().sum(dim=dims, keepdim=True) if dims else real.square()


def _add_over_ranks(units: list[_Unit]) -> None:
    """One all-reduce for all units that are cut along the same dimensions of a mesh."""
    alike: dict[tuple[Any, tuple[int, ...]], list[_Unit]] = {}
    for unit in units:
        alike.setdefault((unit.mesh, unit.cut), []).append(unit)
    for (mesh, cut), members in alike.items():
        flat = torch.cat([t.flatten() for u in members for t in (u.weights, u.grads)])
        _all_reduce(flat, mesh, cut)
        parts = iter(torch.split(flat, [t.numel() for u in members for t in (u.weights, u.grads)]))
        for u in members:
            u.weights, u.grads = (next(parts).view_as(t) for t in (u.weights, u.grads))


def _all_reduce(flat: Tensor, mesh: Any, dimensions: Sequence[int]) -> None:
    import torch.distributed as dist

    for dimension in dimensions:
        dist.all_reduce(flat, group=mesh.get_group(dimension))


def _ratios(units: list[_Unit]) -> Tensor:
    """‖after‖ / ‖before‖ of each gradient, over the ranks that hold parts of it."""
    if not units:
        return torch.ones(0, dtype=torch.float64, device="cpu")
    device = units[0].weights.device
    sums = torch.stack(
        [torch.stack(((u.own * u.factor.square()).sum(), u.own.sum())).to(device) for u in units]
    )
    meshes: dict[Any, list[int]] = {}
    for row, unit in enumerate(units):
        split = tuple(i for i, p in enumerate(unit.placements) if _splits(p))
        if split:
            meshes.setdefault((unit.mesh, split), []).append(row)
    for (mesh, split), rows in meshes.items():
        part = sums[rows]
        _all_reduce(part, mesh, split)
        sums[rows] = part
    return torch.where(sums[:, 1] == 0, 1.0, (sums[:, 0] / sums[:, 1]).sqrt())
