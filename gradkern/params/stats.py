"""What one pass over the gradients tells."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradkern._util.names import as_depth, distinct, layer_of
from gradkern._util.text import html_table, visible
from gradkern.kernels.measured import Measured

_HEAD = ("name", "numel", "norm", "rms", "max_abs", "nonfinite")


@dataclass(frozen=True, eq=False)
class GroupStats:
    """A named group of `GradClipper(groups=...)`; tensors on the gradients' device."""

    names: tuple[str, ...]
    """Canonical names of its parameters."""
    total_norm: Tensor
    """Norm of order `norm_type` of the group's gradients, before clipping: 0-d."""
    factor: Tensor
    """What its gradients were multiplied by, 0-d; the smallest, where its policy has several."""
    threshold: float | Tensor | None = None
    """As `GradStats.threshold`, of the group's policy."""


@dataclass(frozen=True, eq=False)
class GradStats:
    """Norms and counts, one row a parameter (or a layer, after `by_layer`).

    Tensors stay on the gradients' device; nothing here synchronises until a value is looked at
    (`cpu`, `to_dict`, printing). Rows of parameters without gradient are there: norm 0,
    `has_grad` False. A parameter listed twice repeats its row and counts once in totals.
    """

    names: tuple[str, ...]
    """Canonical names, one a row."""
    numel: tuple[int, ...]
    """Elements of each parameter."""
    has_grad: tuple[bool, ...]
    """Whether there was a gradient."""
    norm: Tensor
    """Norm of order `norm_type`: float32 [N] (float64 if any gradient is float64 or complex128)."""
    l2_norm: Tensor
    """L2 norm whatever the order is; the same tensor as `norm` for order 2."""
    max_abs: Tensor
    """Largest magnitude, NaN if there is one: type and shape as `norm`."""
    nonfinite: Tensor
    """How many elements are inf or NaN: int64 [N]."""
    zeros: Tensor | None
    """How many elements are zero (of a sparse gradient: are stored as 0): int64 [N]; None unless counted."""
    total_norm: Tensor
    """Norm of order `norm_type` of everything, before clipping: 0-d."""
    clip_coef: Tensor | None = None
    """What the gradients were multiplied by, 0-d: the smallest of `factor`. None if nothing was to be clipped
    at all."""
    skip_step: Tensor | None = None
    """0-d bool, True if the step is to be skipped, or the scaler skips it; None unless on_nonfinite="skip"
    or a scaler was given."""
    norm_type: float = 2.0
    """Order of `norm` and `total_norm`."""
    inv_scale: float | Tensor = 1.0
    """1 / loss scale, in all norms here already: `measure`'s argument, or that of the scaler given to
    `clip_` (0-d float64 where the scaler keeps its scale on a device)."""
    first: tuple[int, ...] = field(default=(), repr=False)
    """For each row the first row of the same parameter."""
    applied: bool = field(default=False, repr=False)
    """Whether the gradients themselves have been multiplied by `inv_scale` and `clip_coef`: by `clip_`,
    unless the optimizer is to do that (`fold`)."""

    threshold: float | Tensor | None = None
    """The norm above which the policy scales in this step; 0-d, or [N] where each row has its own. None, or
    infinity, where there is none."""
    policy: Mapping[str, Any] | None = field(default=None, repr=False)
    """What decided, as plain values: {"class": "GlobalNorm", "max_norm": 1.0, …}. The same object from step
    to step while nothing changes."""
    decision_norm: Tensor | None = field(default=None, repr=False)
    """What decisions go by, 0-d float64: `total_norm` where its type holds it, else the norm before it is
    rounded to infinity. None where `clip_` measured and decided in one call."""

    _wide_norm: Tensor | None = field(default=None, repr=False)
    """float64 [N]: `norm` before rounding, where it was measured."""
    _factor: Tensor | None = field(default=None, repr=False)
    """[N] float64, where not all gradients were multiplied by `clip_coef`."""
    _groups: Mapping[str, GroupStats] | None = field(default=None, repr=False)
    _identities: tuple[int, ...] = field(default=(), repr=False)
    """`id` of each row's parameter, for a monitor that knows it by another name; empty if not known.
    Numbers, so that statistics that are kept keep no parameter alive."""

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
        """The statistics of a list that was measured; `further`: fields beyond."""
        stats = object.__new__(cls)
        # At once: a frozen dataclass's __init__ sets field by field, which takes longer than measuring.
        stats.__dict__.update(
            names=names,
            numel=numel,
            has_grad=measured.has_grad,
            norm=measured.norm,
            l2_norm=measured.l2_norm,
            max_abs=measured.max_abs,
            nonfinite=measured.nonfinite,
            zeros=measured.zeros,
            total_norm=measured.total_norm,
            decision_norm=measured.decision_norm,
            _wide_norm=measured.wide_norm,
            first=first,
            norm_type=norm_type,
            _identities=identities,
            **further,
        )
        return stats

    def with_factor(self, factor: Tensor) -> GradStats:
        """The same, with what each gradient was multiplied by: [N]."""
        stats = object.__new__(type(self))
        least = factor.amin() if len(factor) else factor.new_ones(())
        stats.__dict__.update(self.__dict__)
        stats.__dict__.update(_factor=factor, clip_coef=least.to(self.total_norm.dtype))
        return stats

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy or a pickle: without the ids of this process's parameters; names tell them then."""
        return {**self.__dict__, "_identities": ()}

    def __len__(self) -> int:
        return len(self.names)

    @property
    def factor(self) -> Tensor | None:
        """What each gradient was multiplied by: [N]. A gradient that was changed element by element (AGC, by
        value) has the ratio of its L2 norms after and before. None if nothing was to be clipped at all."""
        if self._factor is not None or self.clip_coef is None:
            return self._factor
        return self.clip_coef.expand(len(self))

    @property
    def groups(self) -> Mapping[str, GroupStats]:
        """The named groups of the clipper, in its order; empty without groups."""
        return {} if self._groups is None else self._groups

    def deciding(self) -> Tensor:
        """The total norm that decisions go by: `decision_norm`, or else `total_norm`; 0-d, float64 wherever
        the device has it."""
        if self.decision_norm is not None:
            return self.decision_norm
        return self.total_norm if self.total_norm.device.type == "mps" else self.total_norm.double()

    def deciding_rows(self) -> Tensor:
        """The norm of each row that decisions go by, before rounding where it was measured so: [N]."""
        return self.norm if self._wide_norm is None else self._wide_norm

    @functools.cached_property
    def rms(self) -> Tensor:
        """Root mean square of each gradient, ``l2_norm / sqrt(numel)``: the size-independent norm."""
        roots = [1 / math.sqrt(n) if n else 0.0 for n in self.numel]
        return self.l2_norm * torch.tensor(roots, dtype=self.l2_norm.dtype, device="cpu").to(
            self.l2_norm.device, non_blocking=True
        )

    def by_layer(self, depth: int | None = None) -> GradStats:
        """Rows rolled up to the modules that own the parameters.

        Args:
            depth: keep at most that many leading components of the module's name:
                ``by_layer(2)`` counts "blocks.1.attn.weight" under "blocks.1", ``by_layer(0)``
                everything under "(root)".

        Returns:
            GradStats with one row a layer, in order of first appearance; totals as they are. No
            synchronisation. Deterministic.

        Raises:
            ValueError: `depth` is negative, or no integer.
        """
        depth = as_depth("by_layer", depth)
        members: dict[str, list[int]] = {}
        for row, name in enumerate(self.names):
            rows = members.setdefault(layer_of(name, depth), [])
            if self.first[row] == row:  # a parameter listed twice counts once
                rows.append(row)
        groups = RowGroups(list(members.values()), len(self.names), self.norm.device)
        counted = [[r for r in rows if self.has_grad[r] and self.numel[r]] for rows in members.values()]
        nonempty = RowGroups(counted, len(self.names), self.norm.device)
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
            _identities=(),
        )

    def _layer_factor(self, layers: RowGroups, before: Tensor) -> Tensor | None:
        """The ratio of each layer's L2 norms after and before clipping."""
        if self._factor is None:
            return None
        after = layers.norm(self.l2_norm * self._factor, 2.0)
        return torch.where(before == 0, 1.0, after / before)

    def cpu(self) -> GradStats:
        """The same on the CPU. Synchronises with the device once."""
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
            moved["_groups"] = {name: _on_host(group) for name, group in self._groups.items()}
        if isinstance(self.inv_scale, Tensor):
            moved["inv_scale"] = float(self.inv_scale)
        return dataclasses.replace(self, **moved)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers: totals, and under "params" a dict for each row. Synchronises.

        Of rows with the same name the second is called "name (2)", and so on.
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
        """Names of the rows that hold inf or NaN. Synchronises."""
        return [name for name, count in zip(self.names, self.nonfinite.tolist()) if count]

    def _table(self) -> Iterator[tuple[str, str, str, str, str, str]]:
        host = self.cpu()
        norm, rms, largest, bad = (t.tolist() for t in (host.norm, host.rms, host.max_abs, host.nonfinite))
        for row, name in enumerate(self.names):
            numbers = (f"{norm[row]:.4g}", f"{rms[row]:.4g}", f"{largest[row]:.4g}")
            yield (
                visible(name),
                str(self.numel[row]),
                *(numbers if self.has_grad[row] else ("-",) * 3),
                str(bad[row]),
            )

    def _headline(self) -> str:
        clipped = "" if self.clip_coef is None else f", clip_coef={float(self.clip_coef):.4g}"
        bad = sum(self.nonfinite.tolist())
        return (
            f"{len(self)} rows, {sum(self.has_grad)} with gradient, total_norm="
            f"{float(self.total_norm):.6g}{clipped}, nonfinite={bad}"
        )

    def __repr__(self) -> str:
        return f"GradStats({self._headline()}; print() shows the rows)"

    def _shown(self) -> list[tuple[str, str, str, str, str, str]]:
        """The rows of the table, the middle left out where there are many."""
        rows = list(self._table())
        return rows if len(rows) <= 60 else [*rows[:30], ("…",) * 6, *rows[-30:]]

    def _repr_html_(self) -> str:
        """The table for a notebook; names are escaped. Synchronises."""
        return html_table(f"GradStats({self._headline()})", _HEAD, self._shown())

    def __str__(self) -> str:
        shown = self._shown()
        widths = [max(len(r[i]) for r in [_HEAD, *shown]) for i in range(6)]
        lines = [f"GradStats({self._headline()})"]
        for r in [_HEAD, *shown]:
            cells = [r[0].ljust(widths[0])] + [r[i].rjust(widths[i]) for i in range(1, 6)]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)


def _on_host(group: GroupStats) -> GroupStats:
    limit = group.threshold.cpu() if isinstance(group.threshold, Tensor) else group.threshold
    return GroupStats(group.names, group.total_norm.cpu(), group.factor.cpu(), limit)


class RowGroups:
    """Rows gathered by group: a padded index matrix, so that sums run in a fixed order."""

    def __init__(self, groups: list[list[int]], rows: int, device: torch.device) -> None:
        width = max((len(g) for g in groups), default=0) or 1
        padded = [g + [rows] * (width - len(g)) for g in groups]
        self.index = torch.tensor(padded, dtype=torch.int64, device="cpu").reshape(len(groups), width)
        self.index = self.index.to(device, non_blocking=True)
        empty = torch.tensor([not g for g in groups], dtype=torch.bool, device="cpu")
        self.empty = empty.to(device, non_blocking=True)

    def gather(self, values: Tensor, neutral: float) -> Tensor:
        """[groups, width], with `neutral` where a group has fewer rows."""
        return torch.cat([values, values.new_full((1,), neutral)])[self.index]

    def norm(self, norms: Tensor, norm_type: float) -> Tensor:
        """The norm of each group from its rows' norms of the same order; 0 for an empty group."""
        wide = norms if norms.device.type == "mps" else norms.double()
        if norm_type in (0.0, 1.0):
            return self.gather(wide, 0.0).sum(dim=1).to(norms.dtype)
        if norm_type == math.inf:
            return self.gather(wide, 0.0).amax(dim=1).to(norms.dtype)
        if norm_type < 0:
            matrix = self.gather(wide, math.inf)
            smallest = matrix.amin(dim=1, keepdim=True)
            combined = smallest if norm_type == -math.inf else _scaled_norm(matrix, smallest, norm_type)
            return torch.where(self.empty, 0.0, combined[:, 0]).to(norms.dtype)
        matrix = self.gather(wide, 0.0)
        return _scaled_norm(matrix, matrix.amax(dim=1, keepdim=True), norm_type)[:, 0].to(norms.dtype)


def _scaled_norm(matrix: Tensor, reference: Tensor, norm_type: float) -> Tensor:
    """Row-wise p-norm [L, 1], relative to a reference magnitude so that no power leaves the range."""
    usable = (reference > 0) & reference.isfinite()
    safe = torch.where(usable, reference, torch.ones_like(reference))
    powers = ((matrix / safe) ** norm_type).sum(dim=1, keepdim=True)
    # Where the reference is 0, inf or NaN it is the norm already, for either sign of the order.
    return torch.where(usable, safe * powers ** (1.0 / norm_type), reference)
