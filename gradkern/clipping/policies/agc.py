"""`AGC`: adaptive gradient clipping relative to the norms of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradkern.clipping.policies.base import ElementPolicy
from gradkern.clipping.policies.checks import Check, at_least, one_of
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

    _checks: ClassVar[Mapping[str, Check]] = {
        "clip_factor": partial(at_least, low=0.0),
        "eps": partial(at_least, low=0.0),
        "units": partial(one_of, choices=_UNITS),
    }

    def __init__(self, clip_factor: float = 0.01, eps: float = 1e-3, *, units: str = "timm") -> None:
        self.clip_factor = clip_factor
        self.eps = eps
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
                    f"{where}: the policy AGC needs a reduced gradient, got placements "
                    f"{tuple(grad.placements)}; call .redistribute() on it first"
                )
            if is_dtensor(grad) and tuple(grad.placements) != tuple(getattr(param, "placements", ())):
                raise ValueError(
                    f"{where}: the policy AGC needs a gradient with the placements of its parameter, "
                    f"{tuple(getattr(param, 'placements', ()))}, got {tuple(grad.placements)}; call "
                    ".redistribute() on it first"
                )
            check_readable(where, grad)
            if grad.layout not in (torch.strided, torch.sparse_coo) or grad.is_nested:
                raise TypeError(
                    f"{where}: the policy AGC needs a strided or sparse COO gradient, got {grad.layout}"
                )
            if grad.layout is torch.strided and any(
                n > 1 and step == 0 for n, step in zip(grad.shape, grad.stride())
            ):
                raise ValueError(
                    f"{where}: the policy AGC needs a gradient whose elements share no memory, got an "
                    "expanded one; call .contiguous() on it"
                )

    def apply_(
        self,
        operation: str,
        params: Sequence[Tensor],
        shards: Sequence[Tensor | None] | None,
        names: Sequence[str],
    ) -> Tensor | None:
        if not any(is_dtensor(p) for p in params):
            norms = self._clip_whole(params, shards)
            if norms is not None:
                return _ratio(norms[0], norms[1])
        if shards is None:
            shards = written_shards([p.grad for p in params])
        placed = [_Placed(p, self.reduced(p.ndim)) for p in params]
        whole = [i for i, place in enumerate(placed) if not place.cut]
        norms = self._clip_whole([placed[i].local for i in whole], [shards[i] for i in whole])
        squares: dict[int, Tensor] = {} if norms is None else dict(zip(whole, norms.square().unbind(1)))
        units = {
            i: _Units(self, operation, place, grad, name)
            for i, (place, grad, name) in enumerate(zip(placed, shards, names))
            if i not in squares
        }
        _add_over_ranks([u for u in units.values() if u.place.cut])
        for i, unit in units.items():
            squares[i] = unit.scale_(self.clip_factor, self.eps)
        return _ratios(placed, [squares[i] for i in range(len(placed))])

    def _clip_whole(self, weights: Sequence[Tensor], grads: Sequence[Tensor | None] | None) -> Tensor | None:
        """Clip gradients whose units are whole on this rank, in the extension.

        Args:
            grads: None means those that the weights hold.

        Returns:
            [2, N] float64: the L2 norms before and after. None, and nothing has changed, if the extension
            does not support them.
        """
        if self.units != "timm":
            return None
        norms: Tensor | None = C.agc_(weights, grads, self.clip_factor, self.eps)
        return norms

    def reduced(self, ndim: int) -> tuple[int, ...]:
        """The dimensions that a unit's norm is taken over."""
        if ndim <= 1:
            return tuple(range(ndim))
        return _UNITS[self.units].get(ndim, tuple(range(1, ndim)))


class _Placed:
    """Where a parameter lies: this rank's part, and the dimensions of a mesh that it is sharded over."""

    def __init__(self, param: Any, reduced: tuple[int, ...]) -> None:
        self.reduced = reduced
        self.mesh: Any = None
        self.split: tuple[int, ...] = ()
        """The dimensions over which ranks hold different parts."""
        self.cut: tuple[int, ...] = ()
        """Those of them that cut through units."""
        self.local: Tensor = param
        if is_dtensor(param):
            self.local, self.mesh = param._local_tensor, param.device_mesh
            splits = [(i, p) for i, p in enumerate(param.placements) if _splits(p)]
            self.split = tuple(i for i, _ in splits)
            self.cut = tuple(i for i, p in splits if p.dim in reduced)


class _Units:
    """The units of one parameter: squared norms of weights and gradients, float64."""

    def __init__(self, policy: AGC, operation: str, place: _Placed, grad: Tensor | None, name: str) -> None:
        self.place, self.grad = place, grad
        with naming(f"[{operation}] '{name}'", place.local):
            self.weights = _squares(place.local, place.reduced)
            self.grads = torch.zeros_like(self.weights) if grad is None else _squares(grad, place.reduced)
        self.own = self.grads  # this rank's part of them

    def scale_(self, clip_factor: float, eps: float) -> Tensor:
        """Returns [2]: the squared norms of this rank's part of the gradient, before and after."""
        factor = torch.ones_like(self.weights)
        if self.grad is not None and self.grad.numel():
            norm, largest = self.grads.sqrt(), self.weights.sqrt().clamp(min=eps) * clip_factor
            factor = torch.where(norm < largest, 1.0, largest / norm.clamp(min=1e-6))
            if not (factor.is_cpu and bool((factor == 1).all())):
                wide = torch.complex128 if self.grad.is_complex() else torch.float64
                self.grad.copy_(self.grad.to(wide) * factor)
        return torch.stack((self.own.sum(), (self.own * factor.square()).sum()))


def _splits(placement: Any) -> bool:
    """Whether ranks hold different parts. `is_shard` is False for torch's strided shards."""
    return not placement.is_replicate() and not placement.is_partial()


def _squares(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The sum of squares of each unit, with the reduced dimensions kept."""
    dense = x.detach().to_dense() if x.is_sparse else x.detach()
    real = dense.to(torch.complex128).abs() if dense.is_complex() else dense.double()
    return real.square().sum(dim=dims, keepdim=True) if dims else real.square()


def _add_over_ranks(units: list[_Units]) -> None:
    """One all-reduce for all units that are cut along the same dimensions of a mesh."""
    alike: dict[tuple[Any, tuple[int, ...]], list[_Units]] = {}
    for unit in units:
        alike.setdefault((unit.place.mesh, unit.place.cut), []).append(unit)
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


def _ratios(placed: list[_Placed], squares: list[Tensor]) -> Tensor:
    """‖after‖ / ‖before‖ of each gradient, over the ranks that hold parts of it.

    Args:
        squares: for each gradient, [2]: the squared norms of this rank's part, before and after.
    """
    if not placed:
        return torch.ones(0, dtype=torch.float64, device="cpu")
    squares = [part.to(squares[0].device) for part in squares]
    alike: dict[tuple[Any, tuple[int, ...]], list[int]] = {}
    for row, place in enumerate(placed):
        if place.split:
            alike.setdefault((place.mesh, place.split), []).append(row)
    for (mesh, split), rows in alike.items():
        parts = torch.stack([squares[row] for row in rows])
        _all_reduce(parts, mesh, split)
        for row, part in zip(rows, parts.unbind()):
            squares[row] = part
    before, after = torch.stack(squares).sqrt().unbind(1)
    return _ratio(before, after)


def _ratio(before: Tensor, after: Tensor) -> Tensor:
    return torch.where(before == 0, 1.0, after / before)
