"""`GradStats`: the statistics of one read of the gradients."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradkern._util.names import as_depth, distinct, layer_of
from gradkern.kernels.measured import Measured
from gradkern.params import stats_text
from gradkern.params.group_stats import GroupStats, GroupTotals
from gradkern.params.row_groups import RowGroups


@dataclass(frozen=True, eq=False)
class GradStats:
    """Norms and counts, one row per parameter, or per layer after `by_layer`.

    Tensors stay on the gradients' device. Nothing synchronises until a value is read (`cpu`, `to_dict`,
    printing). A parameter without a gradient has a row too: its norm is 0 and `has_grad` is False. A
    parameter listed twice has two equal rows and counts once in the totals.
    """

    names: tuple[str, ...]
    """Canonical names, one per row."""
    numel: tuple[int, ...]
    """Elements of each parameter."""
    has_grad: tuple[bool, ...]
    """Whether the parameter had a gradient."""
    norm: Tensor
    """Norm of order `norm_type`: float32 [N] (float64 if any gradient is float64 or complex128)."""
    l2_norm: Tensor
    """L2 norm, for any `norm_type`: dtype and shape of `norm`; the same tensor for order 2."""
    max_abs: Tensor
    """Largest magnitude, or NaN if an element is NaN: dtype and shape of `norm`."""
    nonfinite: Tensor
    """Number of elements that are inf or NaN: int64 [N]."""
    zeros: Tensor | None
    """Number of elements that are zero: int64 [N]; of a sparse gradient, of its stored elements. None unless
    `count_zeros` was set."""
    total_norm: Tensor
    """Norm of order `norm_type` of all gradients together, before clipping: 0-d."""
    clip_coef: Tensor | None = None
    """0-d: the factor that the gradients were multiplied by, or the smallest of several factors. None if the
    call only measured."""
    skip_step: Tensor | None = None
    """0-d bool: whether to skip the optimizer step, or whether the scaler skips it. None unless something can
    skip: on_nonfinite="skip" or "raise_later", a policy that skips steps, or a scaler."""
    norm_type: float = 2.0
    """Order of `norm` and `total_norm`."""
    inv_scale: float | Tensor = 1.0
    """1 / loss scale, which all norms here include: the argument of `measure`, or from the scaler given to
    `clip_` (0-d float64 if the scaler keeps its scale on a device)."""
    first: tuple[int, ...] = field(default=(), repr=False)
    """For each row, the first row of the same parameter."""
    applied: bool = field(default=False, repr=False)
    """Whether the gradients themselves were clipped, or multiplied by `inv_scale` and `clip_coef`. False if
    the call only measured, and with `fold`, where the optimizer multiplies."""

    threshold: float | Tensor | None = None
    """The norm above which the policy scales in this step: a number, 0-d, or [N] if each row has its own.
    None or infinity means no limit."""
    policy: Mapping[str, Any] | None = field(default=None, repr=False)
    """The policy and its settings as plain values: {"class": "GlobalNorm", "max_norm": 1.0, …}. The same
    object from step to step until a setting changes."""
    decision_norm: Tensor | None = field(default=None, repr=False)
    """0-d float64: the total norm that decisions use. Equal to `total_norm` if that is finite, else the norm
    before it was rounded to infinity. None if `clip_` measured and decided in one call."""

    _wide_norm: Tensor | None = field(default=None, repr=False)
    """float64 [N]: `norm` before rounding, if it was kept."""
    _factor: Tensor | None = field(default=None, repr=False)
    """float64 [N], unless all gradients were multiplied by `clip_coef`."""
    _groups: Mapping[str, GroupStats] | GroupTotals | None = field(default=None, repr=False)
    _identities: tuple[int, ...] = field(default=(), repr=False)
    """`id` of each row's parameter, so that a monitor can match rows whose names differ; empty if unknown.
    Numbers keep no parameter alive."""

    def __post_init__(self) -> None:
        if not self.first:
            object.__setattr__(self, "first", tuple(range(len(self.names))))

    @classmethod
    def of(
        cls,
        measured: Measured,
        names: tuple[str, ...],
        numel: tuple[int, ...],
        first: tuple[int, ...],
        identities: tuple[int, ...],
        norm_type: float,
        **further: Any,
    ) -> GradStats:
        """Statistics from a measurement.

        Args:
            measured: the result of one read.
            names, numel, first, identities, norm_type: the fields of these names.
            further: other fields.
        """
        fields: dict[str, Any] = {
            "names": names,
            "numel": numel,
            "has_grad": measured.has_grad,
            "norm": measured.norm,
            "l2_norm": measured.l2_norm,
            "max_abs": measured.max_abs,
            "nonfinite": measured.nonfinite,
            "zeros": measured.zeros,
            "total_norm": measured.total_norm,
            "decision_norm": measured.decision_norm,
            "_wide_norm": measured.wide_norm,
            "first": first,
            "norm_type": norm_type,
            "_identities": identities,
            **further,
        }
        return cls.of_fields(fields)

    @classmethod
    def of_fields(cls, fields: dict[str, Any]) -> GradStats:
        """Statistics with these fields, and defaults for the others. The dict must not be used afterwards.

        The `__init__` of a frozen dataclass sets fields one by one, which takes longer than measuring.
        """
        stats = object.__new__(cls)
        object.__setattr__(stats, "__dict__", fields)
        return stats

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles have no ids of parameters: they would be those of other objects."""
        return {**self.__dict__, "_identities": (), "_groups": dict(self.groups) or None}

    def __len__(self) -> int:
        return len(self.names)

    @property
    def factor(self) -> Tensor | None:
        """[N]: the factor that each gradient was multiplied by. For a gradient that was changed element by
        element (AGC, clipping by value) the ratio of its L2 norms after and before. None if the call only
        measured."""
        if self._factor is not None or self.clip_coef is None:
            return self._factor
        return self.clip_coef.expand(len(self))

    @property
    def groups(self) -> Mapping[str, GroupStats]:
        """The clipper's named groups in order; empty without groups."""
        if isinstance(self._groups, GroupTotals):  # created on first use
            factor = self.clip_coef if self._factor is None else self._factor
            assert factor is not None
            object.__setattr__(self, "_groups", self._groups.stats(factor, self.total_norm.dtype))
        return {} if self._groups is None else self._groups  # type: ignore[return-value]

    def deciding(self) -> Tensor:
        """The total norm that decisions use: 0-d, float64 (float32 on devices without float64)."""
        if self.decision_norm is not None:
            return self.decision_norm
        return self.total_norm if self.total_norm.device.type == "mps" else self.total_norm.double()

    def deciding_rows(self) -> Tensor:
        """The norm of each row that decisions use: [N], float64 where it was kept before rounding."""
        return self.norm if self._wide_norm is None else self._wide_norm

    @functools.cached_property
    def rms(self) -> Tensor:
        """[N]: root mean square of each gradient, ``l2_norm / sqrt(numel)``, which does not depend on its
        size."""
        return self.l2_norm * _inverse_roots(self.numel, self.l2_norm.dtype, self.l2_norm.device)

    def by_layer(self, depth: int | None = None) -> GradStats:
        """One row per layer: the rows of the parameters that a module owns, combined.

        Args:
            depth: keep at most this many leading components of the module's name. ``by_layer(2)`` counts
                "blocks.1.attn.weight" under "blocks.1"; ``by_layer(0)`` counts everything under "(root)".

        Returns:
            GradStats with the layers in order of first appearance and the same totals.

        Raises:
            ValueError: `depth` is negative or not an integer.

        Notes:
            Deterministic. No synchronisation. The first call for a list of parameters copies indices to the
            device, so it has to come before a CUDA graph is captured.
        """
        depth = as_depth("by_layer", depth)
        members, groups, nonempty = _layers(
            self.names, self.first, self.has_grad, self.numel, depth, self.norm.device
        )
        l2_norm = nonempty.norm(self.l2_norm, 2.0)
        return dataclasses.replace(
            self,
            names=tuple(members),
            numel=tuple(sum(self.numel[r] for r in rows) for rows in members.values()),
            has_grad=tuple(any(self.has_grad[r] for r in rows) for rows in members.values()),
            norm=nonempty.norm(self.norm, self.norm_type),
            l2_norm=l2_norm,
            max_abs=groups.gather(self.max_abs, 0.0).amax(dim=1),
            nonfinite=groups.gather(self.nonfinite, 0).sum(dim=1),
            zeros=None if self.zeros is None else groups.gather(self.zeros, 0).sum(dim=1),
            first=tuple(range(len(members))),
            threshold=None if isinstance(self.threshold, Tensor) and self.threshold.ndim else self.threshold,
            _factor=self._layer_factor(nonempty, l2_norm),
            _wide_norm=None,
            _groups=dict(self.groups) or None,
            _identities=(),
        )

    def _layer_factor(self, layers: RowGroups, before: Tensor) -> Tensor | None:
        """[layers]: the ratio of each layer's L2 norms after and before clipping."""
        if self._factor is None:
            return None
        after = layers.norm(self.l2_norm * self._factor, 2.0)
        return torch.where(before == 0, 1.0, after / before)

    def cpu(self) -> GradStats:
        """A copy whose tensors are on the CPU. Synchronises."""
        moved: dict[str, Any] = {}
        for name in (
            "norm",
            "l2_norm",
            "max_abs",
            "nonfinite",
            "zeros",
            "total_norm",
            "clip_coef",
            "skip_step",
            "threshold",
            "decision_norm",
            "_factor",
            "_wide_norm",
        ):
            value = getattr(self, name)
            moved[name] = value.cpu() if isinstance(value, Tensor) else value
        if self._groups is not None:
            moved["_groups"] = {name: group.cpu() for name, group in self.groups.items()}
        if isinstance(self.inv_scale, Tensor):
            moved["inv_scale"] = float(self.inv_scale)
        return dataclasses.replace(self, **moved)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers: the totals, and under "params" one dict per row. Synchronises.

        If several rows have the same name, the second is called "name (2)", and so on.
        """
        on_host = self.cpu()
        columns: dict[str, list[Any]] = {
            "numel": list(self.numel),
            "has_grad": list(self.has_grad),
            "norm": on_host.norm.tolist(),
            "rms": on_host.rms.tolist(),
            "max_abs": on_host.max_abs.tolist(),
            "nonfinite": on_host.nonfinite.tolist(),
        }
        if on_host.zeros is not None:
            columns["zeros"] = on_host.zeros.tolist()
        if on_host.factor is not None:
            columns["factor"] = on_host.factor.tolist()
        return {
            "total_norm": on_host.total_norm.item(),
            "norm_type": self.norm_type,
            "inv_scale": on_host.inv_scale,
            "clip_coef": None if on_host.clip_coef is None else on_host.clip_coef.item(),
            "groups": {
                name: {"total_norm": group.total_norm.item(), "factor": group.factor.item()}
                for name, group in on_host.groups.items()
            },
            "skip_step": None if on_host.skip_step is None else on_host.skip_step.item(),
            "params": {
                name: {key: values[row] for key, values in columns.items()}
                for row, name in enumerate(distinct(self.names))
            },
        }

    def nonfinite_names(self) -> list[str]:
        """Names of the rows with inf or NaN. Synchronises."""
        return [name for name, count in zip(self.names, self.nonfinite.tolist()) if count]

    def __repr__(self) -> str:
        return f"GradStats({stats_text.headline(self)}; print() shows the rows)"

    def __str__(self) -> str:
        return stats_text.as_text(self)

    def _repr_html_(self) -> str:
        """The table for a notebook, names escaped. Synchronises."""
        return stats_text.as_html(self)


@functools.lru_cache(maxsize=16)
def _layers(
    names: tuple[str, ...],
    first: tuple[int, ...],
    has_grad: tuple[bool, ...],
    numel: tuple[int, ...],
    depth: int | None,
    device: torch.device,
) -> tuple[dict[str, list[int]], RowGroups, RowGroups]:
    """The rows of each layer; the same on the device; and those with elements. Kept, because a copy from the
    host cannot be part of a CUDA graph."""
    members: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows = members.setdefault(layer_of(name, depth), [])
        if first[row] == row:  # a parameter listed twice counts once
            rows.append(row)
    counted = [[r for r in rows if has_grad[r] and numel[r]] for rows in members.values()]
    return (
        members,
        RowGroups(list(members.values()), len(names), device),
        RowGroups(counted, len(names), device),
    )


@functools.lru_cache(maxsize=16)
def _inverse_roots(numel: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """``1 / sqrt(numel)``, kept: a copy from the host cannot be part of a CUDA graph."""
    roots = [1 / math.sqrt(n) if n else 0.0 for n in numel]
    return torch.tensor(roots, dtype=dtype, device="cpu").to(device)
