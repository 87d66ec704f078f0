"""How the gradient, the backward signal and the forward signal change over the depth of a chain.

Of a layer ``y = W h + b`` with ``d = dL/dy``, ``gW = d h^T`` and ``gb = d``. So ``rms(gb)`` is the backward
signal at that layer and ``rms(gW) / rms(gb)`` estimates the rms of its input, the forward signal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradkern.diagnosis.evidence import RunEvidence
from gradkern.diagnosis.model import Layer

Floats = NDArray[np.floating[Any]]

#: The gradient of a bias before a normalization consists of rounding errors: rms_b / rms_W was below 1e-4 in
#: float32, and 1.1e-3 and 4.5e-3 under bfloat16 autocast, whose precision is 3.9e-3. Others have 0.1 … 10. In
#: models that normalize, the latter limit is used, because nothing tells whether autocast was on.
NORMALIZED_BIAS, NORMALIZED_BIAS_16_BIT = 1e-4, 2e-2
#: Rows that profiles are computed at, and rows that are averaged for each (medians over batches).
POINTS, AVERAGED = 64, 5
#: Most layers of a chain that are compared pairwise; an even selection of longer chains.
MOST_LAYERS = 48


@dataclass(frozen=True)
class Profile:
    """Decades of log10 rms over the depth of one chain at P points of the run.

    Positive: smaller at the input than at the output.
    """

    chain: list[Layer]
    """All layers."""
    kept: NDArray[np.int64]
    """[L] positions in `chain` of the layers that are compared; an even selection of a long chain."""
    at: NDArray[np.int64]
    """[P] positions in `evidence.rows`."""
    weight: Floats
    """[P, L] log10 rms of the weights' gradients, NaN where zero or absent."""
    bias: Floats
    """[P, L] the same of biases (the backward signal), NaN where there is none or it is normalized away."""

    @property
    def depth(self) -> int:
        """Layers of the whole chain."""
        return len(self.chain)

    def named(self, sick: NDArray[np.bool_]) -> list[Layer]:
        """The affected layers of the chain, given [L] which of the compared layers are. A layer that is not
        compared counts as the nearest one that is."""
        nearest = np.abs(np.arange(self.depth)[:, None] - self.kept).argmin(axis=1)
        return [layer for layer, at_fault in zip(self.chain, sick[nearest]) if at_fault]

    @property
    def forward(self) -> Floats:
        """[P, L] log10 of the estimated rms of each layer's input."""
        return self.weight - self.bias


def profile_of(evidence: RunEvidence, layers: list[Layer], rounding: float = NORMALIZED_BIAS) -> Profile:
    """The profile of a chain. A bias with a gradient below `rounding` of the matrix's is normalized away."""
    chain, kept = layers, np.arange(len(layers))
    if len(layers) > MOST_LAYERS:
        kept = np.unique(np.linspace(0, len(layers) - 1, MOST_LAYERS).astype(int))
        layers = [chain[i] for i in kept]
    at = points(len(evidence.rows))
    weight = _log_rms(evidence, [layer.weight for layer in layers], at)
    biases = [layer.bias for layer in layers]
    bias = np.full(weight.shape, np.nan)
    with_bias = [i for i, b in enumerate(biases) if b is not None]
    if with_bias:
        bias[:, with_bias] = _log_rms(evidence, [b for b in biases if b is not None], at)
    with np.errstate(invalid="ignore"):
        bias[bias - weight < np.log10(rounding)] = np.nan
    return Profile(chain, kept, at, weight, bias)


def points(rows: int) -> NDArray[np.int64]:
    """At most `POINTS` of the rows, more of them early."""
    if rows <= POINTS:
        return np.arange(rows)
    early = np.arange(POINTS // 4)
    return np.unique(np.concatenate([early, np.linspace(POINTS // 4, rows - 1, POINTS * 3 // 4).astype(int)]))


def _log_rms(evidence: RunEvidence, columns: list[int], at: NDArray[np.int64]) -> Floats:
    """[P, L] log10 of the median rms over a few rows up to each point."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log10(evidence.rms[:, columns].astype(np.float64))
    logs[~np.isfinite(logs)] = np.nan
    window = at[:, None] - np.arange(AVERAGED)
    return median(np.where(window[:, :, None] >= 0, logs[np.maximum(window, 0)], np.nan), axis=1)


def median(values: Floats, axis: int = 0) -> Floats:
    """The median of the values that are not NaN; NaN if there are none."""
    ordered = np.moveaxis(np.sort(values, axis=axis), axis, 0)  # NaN last
    count = np.isfinite(ordered).sum(axis=0)
    low, high = np.maximum(count - 1, 0) // 2, np.maximum(count, 1) // 2
    high = np.minimum(high, len(ordered) - 1)
    found = [np.take_along_axis(ordered, i[None], axis=0)[0] for i in (low, high)]
    return np.where(count > 0, (found[0] + found[1]) / 2, np.nan)


def decades(profile: Floats) -> Floats:
    """[P] change over the depth, output over input; NaN where fewer than three layers are known.

    Theil and Sen's robust slope times the depth; the difference between the medians of the last and
    the first third where that says more and the slope agrees (one layer that differs is no trend).
    """
    found = np.full(len(profile), np.nan)
    known = np.isfinite(profile)
    for mask in np.unique(known, axis=0) if len(profile) else known:
        rows, layers = (known == mask).all(axis=1), np.flatnonzero(mask)
        if len(layers) >= 3:
            found[rows] = _decades(profile[np.ix_(rows, layers)], layers)
    return found


def _decades(values: Floats, at: NDArray[np.int64]) -> Floats:
    """`decades` of rows in which the same layers are known."""
    i, j = np.triu_indices(len(at), 1)
    slope = np.median((values[:, j] - values[:, i]) / (at[j] - at[i]), axis=1) * (at[-1] - at[0])
    third = max(1, len(at) // 3)
    ends = np.median(values[:, -third:], axis=1) - np.median(values[:, :third], axis=1)
    agrees = (np.abs(slope) < np.abs(ends)) & (np.abs(ends) <= 3 * np.abs(slope)) & (ends * slope > 0)
    return np.where(agrees, ends, slope)
