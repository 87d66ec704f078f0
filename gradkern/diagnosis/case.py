"""`Case`: the evidence of a run, and quantities that several rules derive from it, computed once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradkern.diagnosis.evidence import RunEvidence
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.model import Layer, Model
from gradkern.diagnosis.profile import (
    NORMALIZED_BIAS,
    NORMALIZED_BIAS_16_BIT,
    Profile,
    profile_of,
)
from gradkern.diagnosis.trend import WELL, LossTrend, loss_trend

Floats = NDArray[np.floating[Any]]

#: With fewer steps, only NaN, constant weights and missing gradients can be found.
FEW_STEPS = 10
#: ‖Δw‖ / ‖w‖ of a typical step that is too small for weights of any precision. Healthy runs have a median
#: above 2e-5.
TOO_SMALL = 1.5e-5
#: Decades by which the gradient falls over the depth where the first layers do not learn, whatever the loss
#: says. Healthy runs start at up to 4.5, for five steps (1,128 runs).
STARVING = 4.0
#: Consecutive falls of the loss that noise makes with a probability of only 1/64.
FALLING = 6


@dataclass(frozen=True)
class Case:
    """The argument of every rule."""

    evidence: RunEvidence

    @cached_property
    def model(self) -> Model:
        return Model(self.evidence)

    @cached_property
    def trend(self) -> LossTrend:
        return loss_trend(self.evidence)

    @cached_property
    def falls_at_once(self) -> bool:
        """Whether the loss falls at each of the first steps and never returns to its first value, as with
        full batches of a convex problem. Weights may then move by their own size, and the gradient
        vanishes."""
        loss = self.evidence.loss
        known = len(loss) > FALLING and bool(np.isfinite(loss).all())
        return (
            known
            and self.trend.fell
            and bool((np.diff(loss[: FALLING + 1]) < 0).all() and loss[1:].max() < loss[0])
        )

    @cached_property
    def learns_well(self) -> bool:
        """Whether the loss has fallen to a fifth of its first value and stays there. Only the very first
        value is used, because the second and third may have jumped."""
        e, loss = self.evidence, self.evidence.loss[np.isfinite(self.evidence.loss)]
        if not self.trend.known or (e.has_loss & ~np.isfinite(e.loss)).any():
            return False
        first = min(float(loss[0]), self.trend.start)
        return self.trend.kept and first - self.trend.end >= WELL * abs(first)

    @cached_property
    def profiles(self) -> list[Profile]:
        return [self._profile(chain) for chain in self.model.chains]

    @cached_property
    def bypassed(self) -> list[Profile]:
        """The profiles of `Model.bypassed`."""
        return [self._profile(chain) for chain in self.model.bypassed]

    def _profile(self, chain: list[Layer]) -> Profile:
        rounding = NORMALIZED_BIAS_16_BIT if self.model.normalizes else NORMALIZED_BIAS
        return profile_of(self.evidence, chain, rounding)

    @cached_property
    def movement(self) -> Floats:
        """[U] ‖Δw‖ / ‖w‖ over all matrices together; NaN if unknown."""
        columns, e = self.model.matrices, self.evidence
        weights, ratios = e.weight_norm[:, columns].astype(np.float64), e.update_ratio[:, columns]
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            moved = np.where(np.isfinite(ratios) & np.isfinite(weights), ratios * weights, 0.0)
            size = np.sqrt(np.nansum(np.where(np.isfinite(weights), weights, 0.0) ** 2, axis=1))
            found = np.sqrt((moved**2).sum(axis=1)) / size
        known = np.isfinite(ratios).any(axis=1) & (size > 0)
        return np.where(known, found, np.nan)

    @cached_property
    def weight_size(self) -> Floats:
        """[U] norm of all matrices together; NaN if one of them is not finite."""
        weights = self.evidence.weight_norm[:, self.model.matrices].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            known = np.where(np.isnan(weights).all(axis=1), np.nan, 1.0)
            return np.sqrt(np.nansum(weights**2, axis=1)) * known

    @cached_property
    def unmoved(self) -> NDArray[np.bool_]:
        """[N] whether the weights of a parameter never changed, although others did."""
        norms = self.evidence.weight_norm
        known = np.isfinite(norms) & (norms > 0)
        if known.sum(axis=0).max(initial=0) < 3:
            return np.zeros(norms.shape[1], dtype=bool)
        first = norms[np.argmax(known, axis=0), np.arange(norms.shape[1])]
        same = ((norms == first) | ~known).all(axis=0)
        still = same & (known.sum(axis=0) >= 3) & (np.nan_to_num(self.evidence.update_ratio) == 0).all(axis=0)
        return still & bool((~same & known.any(axis=0)).any())

    @cached_property
    def moved(self) -> NDArray[np.bool_]:
        """[N] whether the weights of a parameter are known to have changed. A bias that starts at zero and
        stays there has not."""
        norms = self.evidence.weight_norm
        first = norms[:1] if len(norms) else np.zeros((1, norms.shape[1]))
        differs = np.isfinite(norms) & np.isfinite(first) & (norms != first)
        return np.asarray((differs | (np.nan_to_num(self.evidence.update_ratio) > 0)).any(axis=0))

    @cached_property
    def finite(self) -> NDArray[np.int64]:
        """Positions of steps whose total norm is finite."""
        return np.flatnonzero(np.isfinite(self.evidence.total_norm))

    def step(self, row: int) -> int:
        """Step of a row of `evidence.rows`."""
        return int(self.evidence.steps[self.evidence.rows[row]])

    @property
    def last_step(self) -> int:
        return int(self.evidence.steps[-1])

    def names(self, columns: Iterable[int]) -> tuple[str, ...]:
        """Names of parameters, in the order of execution."""
        wanted = set(columns)
        return tuple(self.evidence.names[i] for i in self.model.order if i in wanted)

    def of_layers(self, layers: Iterable[Layer]) -> tuple[str, ...]:
        """Names of the parameters of some layers."""
        found = list(layers)
        return self.names([*(x.weight for x in found), *(x.bias for x in found if x.bias is not None)])

    def finding(
        self,
        kind: str,
        severity: str,
        why: str,
        evidence: dict[str, float],
        *,
        layers: tuple[str, ...] = (),
        first: int | None = None,
        last: int | None = None,
    ) -> Finding:
        """A finding of this run, by default from its first to its last step."""
        steps = self.evidence.steps
        return Finding(
            kind,
            severity,
            layers,
            int(steps[0]) if first is None else first,
            int(steps[-1]) if last is None else last,
            {name: float(value) for name, value in evidence.items()},
            why,
        )
